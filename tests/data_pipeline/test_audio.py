"""Sound files of every kind that people have, whole or broken, and what becomes of them."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.documents import MediaError
from data_pipeline.media.audio import AUGMENT, MAX_SAMPLES, MAX_SECONDS, Audio, decode, item, problems, read
from data_pipeline.shuffle import philox


def tone(rate=16_000, seconds=0.5, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples, rate=16_000, form="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


EXACT = item(Audio(tone(), 16_000), (16_000,))


@pytest.mark.parametrize(
    "form, subtype, off",
    [
        *[("WAV", subtype, 1) for subtype in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
        *[("WAV", "PCM_U8", 300), ("WAV", "ULAW", 900), ("FLAC", "PCM_16", 1), ("FLAC", "PCM_24", 1)],
        *[("OGG", "VORBIS", 1500), ("MP3", "MPEG_LAYER_III", 9000)],
    ],
)
def test_every_format_and_depth_gives_the_same_sound(form, subtype, off):
    found = item(decode(encoded(tone(), form=form, subtype=subtype)), (16_000,))
    assert np.abs(found.astype(int) - EXACT).max() <= off
    assert found.dtype == np.int16


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_gives_the_same_sound(rate):
    found = item(decode(encoded(tone(rate), rate)), (16_000,)).astype(int)
    inside = slice(400, 7600)  # at a sudden start and end a resampler rings
    assert np.abs(found - EXACT)[inside].max() < 40
    assert not found[8100:].any()


def test_channels_are_averaged_and_eight_are_as_good_as_two():
    for channels in (2, 8):
        spread = np.stack([tone() * 2 * n / (channels - 1) for n in range(channels)], axis=1)
        assert np.abs(item(decode(encoded(spread, subtype="FLOAT")), (16_000,)).astype(int) - EXACT).max() <= 1


def test_a_clip_is_cut_at_the_end_or_followed_by_silence():
    assert item(Audio(tone(), 16_000), (3_200,)).tolist() == EXACT[:3_200].tolist()
    longer = item(Audio(tone(), 16_000), (32_000,))
    assert longer[:8_000].tolist() == EXACT[:8_000].tolist() and not longer[8_000:].any()
    assert item(Audio(np.float32([2.0, -2.0]), 16_000), (3,)).tolist() == [32767, -32768, 0]


def picture():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def with_nan():
    samples = tone()
    samples[100] = np.nan
    return encoded(samples, subtype="FLOAT")


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "its 0 bytes cannot be read as sound"),
        (b"RIFF", "its 4 bytes cannot be read as sound"),
        (picture(), "cannot be read as sound"),
        (encoded(tone()[:0]), "it has no samples"),
        (encoded(tone(), form="FLAC")[:2000], "it was cut off|cannot be read as sound"),
        (encoded(tone(), form="OGG")[:3000], "it was cut off|cannot be read as sound"),
        (with_nan(), "some of its samples are no numbers"),
        (encoded(tone(), form="AIFF"), "its format is AIFF, none of WAV"),
    ],
    ids=["empty", "a header", "a picture", "no samples", "cut flac", "cut ogg", "NaN", "another format"],
)
def test_what_is_broken_is_named(data, why):
    with pytest.raises(MediaError, match=why) as error:
        decode(data, "clips[7] audio 0")
    assert error.value.kind == "audio" and str(error.value).startswith("clips[7] audio 0: ")


def test_a_wav_file_that_was_cut_off_is_refused():
    whole = encoded(tone())
    streamed = whole[:4] + b"\xff" * 4 + whole[8:]
    assert np.array_equal(decode(streamed).samples, decode(whole).samples)
    with pytest.raises(MediaError, match="it was cut off: 8022 bytes of 16044"):
        decode(whole[: len(whole) // 2])


def test_an_hour_is_too_long_and_is_not_read(monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    hour = encoded(np.zeros(1000 * (MAX_SECONDS + 60), np.int16), 1000, subtype="PCM_U8")
    with pytest.raises(MediaError, match="it is 61 minutes long; at most 60 are read"):
        decode(hour)


def test_what_would_fill_memory_with_many_channels_is_not_read(monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    wide = encoded(np.zeros((MAX_SAMPLES // 8 + 1, 8), np.int16), 48_000, "FLAC")
    with pytest.raises(MediaError, match="8,388,609 samples in each of 8 channels; at most 67,108,864"):
        decode(wide)


@pytest.mark.parametrize("form", ["W64", "RF64"])
def test_formats_whose_cut_files_pass_for_whole_ones_are_refused(form):
    with pytest.raises(MediaError, match=f"its format is {form}, none of WAV"):
        decode(encoded(tone(), form=form))


def test_what_people_hold_is_read_and_what_is_no_sound_is_not():
    as_int16 = (np.round(tone() * 32768).astype(np.int16), 16_000)
    for form in ((tone(), 16_000), (tone()[:, None], 16_000), as_int16, Audio(tone().astype(np.float64), 16_000)):
        assert np.abs(item(read(form), (16_000,)).astype(int) - EXACT).max() <= 1
    for other in (tone(), "a text", b"RIFF", Image.new("RGB", (2, 2)), (1, 2), None):
        assert read(other) is None
    samples = np.arange(-32768, 32768, dtype=np.int16)
    assert np.array_equal(item(read((samples, 16_000)), samples.shape), samples)
    for wrong in (
        (tone(), np.nan),
        (tone(), 1j),
        (np.arange(5), 16_000),
        (tone(), 7),
        (tone()[:0], 16_000),
        (np.full(4, np.inf, np.float32), 16_000),
    ):
        with pytest.raises(MediaError):
            read(wrong)


@given(st.floats(0.5, 2), st.floats(0, 12), st.floats(0, 1), st.floats(0, 0.1), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_what_training_changes_is_a_function_of_its_draws_and_nothing_else(speed, gain, shift, noise, seed):
    options, draws = dict(speed=(speed, speed), gain_db=gain, shift=shift, noise=noise), philox((seed,)).random(4)
    one, again = (item(Audio(tone(), 16_000), (16_000,), draws, **options) for _ in range(2))
    assert one.shape == (16_000,) and np.array_equal(one, again)
    assert not list(problems(options))


def test_without_options_training_reads_what_inference_does():
    assert np.array_equal(item(Audio(tone(), 16_000), (16_000,), philox((1,)).random(4), **AUGMENT), EXACT)


def test_speed_raises_the_pitch_and_a_shift_moves_the_clip():
    faster = item(Audio(tone(), 16_000), (16_000,), np.zeros(4), speed=(2.0, 2.0))
    spectrum = np.abs(np.fft.rfft(faster[:4000].astype(float)))
    assert np.argmax(spectrum) * 16_000 / 4000 == pytest.approx(880, abs=8) and not faster[4100:].any()
    moved = item(Audio(tone(), 16_000), (16_000,), np.array([0, 0.5, 0.999999, 0]), shift=1.0)
    assert not moved[:7900].any() and moved[8000:].any()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(speed=(2.0, 1.0)), "speed is (2.0, 1.0)"),
        (dict(speed=(1.0,)), "speed is (1.0,)"),
        (dict(shift=2.0), "shift is 2.0"),
        (dict(gain_db=-1.0), "gain_db is -1.0"),
        (dict(noise=99.0), "noise is 99.0"),
        (dict(speed=1.1), "speed is 1.1"),
        (dict(gain_db="x"), "gain_db is 'x'"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    assert [text for text in problems(options) if text.startswith(message)]
