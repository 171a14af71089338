"""What a feature of a TensorFlow Datasets record is in a document, and its values as they are stored."""

import functools
import zlib
from typing import Any

import numpy as np

from data_pipeline.wav import wav

# Types of samples that say by themselves what is loudest; see `wav`.
SAMPLES = ("int16", "int32", "int64", "float32", "float64")


def modality(feature: Any) -> str | None:
    """ "image", "audio", "" for what is put in as text, None for a feature that has no place in a document."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "image"
    if isinstance(feature, tfds.features.Audio):
        return "audio"
    return "" if isinstance(feature, tfds.features.Tensor) and feature.shape == () else None


def audio_problem(feature: Any, sample_rate: int, sequence: bool) -> str:
    """Why an Audio cannot become files, or "".

    Args:
      feature: a `tfds.features.Audio`.
      sample_rate: in hertz, for one that states none; 0: not known.
      sequence: whether it is in a `Sequence`.
    """
    if _stored_as(feature) == "file":  # files are stored, and know all of this
        return ""
    if sequence:
        return "is Audio in a sequence; only with lazy_decode=True can it be told where one ends"
    if not (feature.sample_rate or sample_rate):
        return "does not state its sample rate; give the source sample_rate, in hertz"
    dtype = np.dtype(feature.np_dtype).name
    if dtype not in SAMPLES or None in feature.shape[1:]:
        fit = f"{', '.join(SAMPLES)} of the shape (None,) or (None, channels) fit"
        return f"is Audio of {dtype} and the shape {feature.shape}; {fit}"
    return ""


def values(feature: Any, stored: Any, sample_rate: int) -> list[str | bytes]:
    """A feature's values in one record: the bytes of files for images and audio, text for anything else.

    Args:
      feature: one for which `modality` is not None; one that is in a `Sequence` by itself.
      stored: its `tf.train.Feature`.
      sample_rate: see `audio_problem`.

    Raises:
      ValueError: the samples are none; see `wav`. Or the text is no UTF-8.
      zlib.error: they are stored compressed and damaged.
    """
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return list(stored.bytes_list.value)
    if isinstance(feature, tfds.features.Audio):
        return _sound(feature, stored, feature.sample_rate or sample_rate)
    if isinstance(feature, tfds.features.Text):
        return [value.decode() for value in stored.bytes_list.value]
    if isinstance(feature, tfds.features.ClassLabel):
        return [feature.int2str(value) for value in stored.int64_list.value]
    return [*map(str, stored.int64_list.value), *(f"{value:g}" for value in stored.float_list.value)]


@functools.cache
def _stored_as(feature: Any) -> str:
    """ "file", as it was; or samples: "none" as numbers, "bytes", "zlib"."""
    form = feature.to_json_content()
    return "file" if form.lazy_decode else form.encoding.lower()


def _sound(feature: Any, stored: Any, rate: int) -> list[bytes]:
    form, dtype = _stored_as(feature), feature.np_dtype
    if form == "file":
        return list(stored.bytes_list.value)
    if form == "none":
        samples = np.array(stored.int64_list.value or stored.float_list.value, dtype)
    else:
        (data,) = stored.bytes_list.value
        samples = np.frombuffer(zlib.decompress(data) if form == "zlib" else data, dtype)
    return [wav(samples.reshape(-1, *feature.shape[1:]), rate)]
