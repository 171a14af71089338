"""Sound files to int16 samples at 16 kHz, by soundfile and soxr: the same samples in training and in inference.

Files are WAV, FLAC, Ogg (Vorbis, Opus) and MP3, of any rate and depth; channels are averaged. An item is the first
samples of a clip, with silence after its end: what a modality's `shape` does not hold is cut off.
"""

import io
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from data_pipeline.documents import MediaError
from kosmos_jax.checks import is_range
from kosmos_jax.errors import UserError

AudioError = partial(MediaError, kind="audio")
# See data_pipeline/media/__init__.py.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
FORMS = "(samples float or int16 [n] or [n, channels], rate in Hz)"
AUGMENT = dict(speed=(1.0, 1.0), gain_db=0.0, shift=0.0, noise=0.0)

RATE = 16_000
NOTHING = "it has no samples"
# W64 and RF64 are left out: libsndfile reads them without a complaint when they were cut off.
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
# A longer file is a recording to be cut up first. As float32 the samples of all channels take a quarter of a GiB.
MAX_SECONDS, MAX_SAMPLES = 3600, 2**26
UNKNOWN_LENGTH = 0x7FFF0000
RATES = range(1000, 768_001)
MAX_CHANNELS = 64


class Audio(NamedTuple):
    """A decoded clip.

    Attributes:
      samples: float32[n], from -1 to 1 and a little beyond, one channel.
      rate: samples a second.
    """

    samples: np.ndarray
    rate: int


def decode(data: bytes, where: str = "audio") -> Audio:
    """An encoded sound file as samples of one channel, at its own rate.

    Raises:
      MediaError: names `where`; the file is of none of the formats, damaged, empty, longer than `MAX_SECONDS`, of more
        than `MAX_SAMPLES`, or has samples that are no numbers.
      UserError: soundfile is not installed.
    """
    soundfile = _needed("soundfile")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in FORMATS:
                raise AudioError(where, f"its format is {file.format}, none of {', '.join(FORMATS)}")
            if file.frames > MAX_SECONDS * file.samplerate:
                minutes = file.frames / file.samplerate / 60
                raise AudioError(where, f"it is {minutes:.0f} minutes long; at most {MAX_SECONDS // 60} are read")
            if file.frames * file.channels > MAX_SAMPLES:
                size = f"{file.frames:,} samples in each of {file.channels} channels"
                raise AudioError(where, f"it has {size}; at most {MAX_SAMPLES:,} in all are read")
            samples, expected = file.read(dtype="float32", always_2d=True), file.frames
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(where, f"its {len(data)} bytes cannot be read as sound: {error.error_string}") from error
    # libsndfile takes the length of a WAV from the file, whatever its header says; who streams writes no length.
    stated = int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else 0
    if len(samples) < expected or len(data) < stated < UNKNOWN_LENGTH:
        raise AudioError(
            where, f"it was cut off: {len(data)} bytes of {max(stated, len(data))}, {len(samples)} samples"
        )
    return _checked(samples, rate, where)


def read(value, where: str = "audio") -> Audio | None:
    """What people hold, `Audio` or (samples, rate): float from -1 to 1 or int16, [n] or [n, channels]; else None.

    Raises:
      MediaError: as `decode`, of the samples.
    """
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray)):
        return None
    samples, rate = value
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    elif not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(where, f"its samples are {samples.dtype}; float from -1 to 1 and int16 are read")
    samples = samples[:, None] if samples.ndim == 1 else samples
    if not (isinstance(rate, int | float | np.number) and np.isfinite(rate)):
        raise AudioError(where, f"its rate is {rate!r}, no number of samples a second")
    return _checked(samples.astype(np.float32), int(rate), where)


def _checked(samples: np.ndarray, rate: int, where: str) -> Audio:
    """The mean of the channels of float32[n, channels]."""
    if not samples.size or samples.ndim != 2:
        raise AudioError(
            where, f"its samples are {list(samples.shape)}, not [n, channels]" if samples.size else NOTHING
        )
    if rate not in RATES or samples.shape[1] > MAX_CHANNELS:
        raise AudioError(where, f"it has {rate} samples a second and {samples.shape[1]} channels")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise AudioError(where, "some of its samples are no numbers")
    return Audio(mono, rate)


def item(
    audio: Audio,
    shape: tuple[int, ...],
    draws: np.ndarray | None = None,
    speed=(1.0, 1.0),
    gain_db: float = 0.0,
    shift: float = 0.0,
    noise: float = 0.0,
) -> np.ndarray:
    """int16[samples] at 16 kHz: the first of a clip, with silence after its end; a pure function of its arguments.

    Args:
      audio: as `decode` gives it.
      shape: (samples,).
      draws: float64[4], uniform in [0, 1), in training: speed, gain, shift, noise. Without them nothing is changed.
      speed: least and most times as fast, and as high; 1 changes nothing.
      gain_db: at most so much louder or softer.
      shift: share of the silence after the clip that may come before it.
      noise: deviation of white noise, at most; 1 is full scale.
    """
    factor, volume, start, level = (1.0, 1.0, 0.0, 0.0)
    if draws is not None:
        low, high = speed
        factor = low + (high - low) * draws[0]
        volume = 10 ** (gain_db * (2 * draws[1] - 1) / 20)
        start, level = shift * draws[2], noise * draws[3]
    # A second more than fits: resampling looks a little ahead.
    samples = audio.samples[: int((shape[0] / RATE + 1) * audio.rate * factor) + 1]
    source = audio.rate * factor
    if abs(source - RATE) > 1e-6 * RATE:
        samples = _needed("soxr").resample(samples, source, RATE)
    samples = samples[: shape[0]]
    clip = np.zeros(shape, np.float32)
    first = int(start * (shape[0] - len(samples)))
    clip[first : first + len(samples)] = samples * volume
    if level:
        clip += level * np.random.default_rng(int(draws[3] * 2**53)).standard_normal(shape[0], np.float32)
    return np.clip(np.round(clip * 32768), -32768, 32767).astype(np.int16)


def stored(data: bytes, audio: Audio, shape: tuple[int, ...], speed=(1.0, 1.0), **others) -> bytes:
    """FLAC of 16 kHz and 16 bits with as much of a clip as `item` looks at; a file that is no longer is kept.

    Args:
      data: the file.
      audio: decoded from it.
      shape: (samples,).
      speed: see `item`; the other options need nothing of their own.
    """
    samples = audio.samples[: int((shape[0] / RATE + 1) * audio.rate * speed[1]) + 1]
    if audio.rate <= RATE and len(samples) == len(audio.samples):
        return data
    if audio.rate > RATE:
        samples = _needed("soxr").resample(samples, audio.rate, RATE)
    file = io.BytesIO()
    _needed("soundfile").write(file, np.clip(samples, -1, 1), min(audio.rate, RATE), format="FLAC", subtype="PCM_16")
    return file.getvalue()


def problems(augment: Mapping) -> Iterator[str]:
    """What cannot be among the options of `item`."""
    speed = augment.get("speed", (1.0, 1.0))
    if not is_range(speed, 0.1, 10):
        yield f"speed is {speed}; it is (least, most) times as fast, from 0.1 to 10"
    for key, most in (("shift", 1), ("gain_db", 60), ("noise", 1)):
        if not is_range((0, augment.get(key, 0.0)), 0, most):
            yield f"{key} is {augment[key]!r}; it must be from 0 to {most}"


def _needed(name: str):
    try:
        return __import__(name)
    except (ImportError, OSError) as error:  # OSError: soundfile's library
        raise UserError(
            f"{name} is needed for sound and cannot be imported ({error}): pip install 'kosmos_jax[speech]'"
        ) from error
