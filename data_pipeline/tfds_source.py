"""Any TensorFlow Datasets dataset as a source, by random access; its images stay encoded until their batch is made."""

import difflib
import functools
import hashlib
import logging
import string
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from data_pipeline.documents import DataError, Document, RecordError
from data_pipeline.tensorflow_alone import tensorflow

log = logging.getLogger(__name__)
# Seconds between attempts when the file system gives an error.
WAITS = (0.1, 1.0, 10.0)


class TfdsSource:
    """Kind `tfds`.

    Keys of the config:
      name: as `tfds.builder` takes it, "coco_captions" or "my_dataset/config:1.0.0". The dataset must be prepared.
      data_dir: where it lies; "" for TFDS's default.
      splits: for each of our splits the dataset's: {"train": "train[:95%]", "validation": "train[95%:]"}.
      template: "{image}a photo of a {label}": text with features in braces. An Image is put in as it is, a ClassLabel
        by its name, Text and numbers as text.
      interleaved: instead of a template, the names of two sequences, ("images", "texts"): a text stands for itself, an
        empty one for the next image that is not empty (in OBELICS, each position has exactly one of the two).

    Raises:
      DataError: a key is wrong; the message names it and the nearest right one.
      RecordError: from `source[i]`, for a record that is damaged or does not have what the template wants.
      OSError: from `source[i]`, when the file system still fails after `WAITS`.
    """

    def __init__(self, config: Any, split: str):
        self._tf = tensorflow()
        import tensorflow_datasets as tfds

        self._features, self._tfds = {}, tfds
        builder = tfds.builder(config.name, data_dir=config.get("data_dir") or None)
        if not builder.is_prepared():
            raise DataError(f"dataset {config.name} is not in {builder.data_dir}; run `tfds build {config.name}` first")
        if split not in config.splits:
            raise DataError(f"dataset {config.name}: splits names no {split!r}, only {', '.join(config.splits)}")
        self._all_features = builder.info.features
        template, interleaved = config.get("template") or "", tuple(config.get("interleaved") or ())
        if bool(template) == bool(interleaved):
            raise DataError(f"dataset {config.name}: give either template or interleaved")
        self._interleaved = interleaved
        self._template = [(text, name) for text, name, _, _ in string.Formatter().parse(template)]
        for name in interleaved or [name for _, name in self._template if name]:
            self._check(config.name, name)

        instructions = builder.info.splits[config.splits[split]].file_instructions
        self._records = _Records(instructions, str(builder.info.file_format.value), self._tf)
        self._name = f"{builder.info.full_name}:{config.splits[split]}"
        files = [(Path(file.filename).name, file.skip, file.take, file.examples_in_shard) for file in instructions]
        identity = (self._name, files, str(builder.info.dataset_size), template, interleaved)
        self.fingerprint = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    def _check(self, dataset: str, name: str):
        features, known = self._tfds.features, self._all_features
        if name not in known:
            near = difflib.get_close_matches(name, known, 1) or list(known)
            raise DataError(f"dataset {dataset} has no feature {name!r}; did you mean {', '.join(near)}?")
        feature = known[name].feature if self._interleaved and hasattr(known[name], "feature") else known[name]
        if not isinstance(feature, features.Image) and not (
            isinstance(feature, features.Tensor) and feature.shape == ()
        ):
            raise DataError(
                f"dataset {dataset}: feature {name!r} is {feature}; only images, labels, texts and numbers fit"
            )
        self._features[name] = feature

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Document:
        where = f"{self._name}[{i}]"
        try:
            record = self._records[i]
            if not record:  # array_record's answer for a shard that was cut off
                raise RecordError("", "is empty")
            example = self._tf.train.Example.FromString(record).features.feature
            segments = self._sequence(example) if self._interleaved else self._filled_template(example)
        except RecordError as error:
            raise RecordError(where, error.why) from error
        # No protobuf, no UTF-8, an absent feature. Of a file system's error, or a mistake in the code, the record is
        # innocent.
        except (DecodeError, ValueError, LookupError, struct.error) as error:
            raise RecordError(where, f"cannot be read ({type(error).__name__}: {error})") from error
        return Document(tuple(segments), where)

    def _filled_template(self, example) -> list[str | bytes]:
        segments = [""]
        for text, name in self._template:
            segments[-1] += text
            if name is None:
                continue
            value = self._values(example, name)[0]
            if value == b"":
                raise RecordError("", f"its {name} is empty")
            if isinstance(value, bytes):
                segments += [value, ""]
            else:
                segments[-1] += value
        return [segment for segment in segments if segment]

    def _sequence(self, example) -> list[str | bytes]:
        images, texts = (self._values(example, name) for name in self._interleaved)
        images, segments = [image for image in images if image], []
        for text in texts:
            if text.strip():
                # Two texts in a row are two paragraphs.
                segments.append("\n" + text if segments and isinstance(segments[-1], str) else text)
            elif images:
                segments.append(images.pop(0))
        if images:
            raise RecordError("", f"{len(images)} more images than empty texts")
        return segments

    def _values(self, example, name: str) -> list[str | bytes]:
        """The feature's values: bytes for images, text for anything else."""
        features, feature, stored = self._tfds.features, self._features[name], example[name]
        if isinstance(feature, features.Image):
            return list(stored.bytes_list.value)
        if isinstance(feature, features.Text):
            return [value.decode() for value in stored.bytes_list.value]
        if isinstance(feature, features.ClassLabel):
            return [feature.int2str(value) for value in stored.int64_list.value]
        return [f"{value:g}" for value in (*stored.int64_list.value, *stored.float_list.value)]


class _Records:
    """Serialized examples of a split by number, whichever file format it has."""

    def __init__(self, instructions: list, file_format: str, tf):
        if file_format not in ("tfrecord", "array_record"):
            raise DataError(f"file format {file_format} has no random access; prepare the dataset as array_record")
        self._gfile, self._lock = tf.io.gfile.GFile, threading.Lock()
        self._file_errors = (OSError, tf.errors.OpError)
        self._instructions, self._offsets = instructions, {}
        self._first = np.cumsum([0] + [file.take for file in instructions])
        self._open, self._array_record, self._damages = None, None, set()
        if file_format == "array_record":
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            self._open = functools.partial(ArrayRecordDataSource, instructions)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, i: int) -> bytes:
        for wait in (*WAITS, None):
            try:
                return self._read(i)
            except self._file_errors as error:  # nothing may hang on a moment of a network's disk
                if wait is None:
                    raise OSError(f"record {i} cannot be read: {error}") from error
                log.warning("record %d: %s; once more in %g s", i, error, wait)
                time.sleep(wait)

    def _read(self, i: int) -> bytes:
        shard = int(np.searchsorted(self._first, i, "right")) - 1
        file = self._instructions[shard]
        if self._open:
            return self._read_array_record(i, file.filename)
        start, stop = self._shard_offsets(file.filename)[file.skip + i - int(self._first[shard]) :][:2]
        with self._gfile(file.filename, "rb") as data:
            data.seek(int(start) + 12)
            return data.read(int(stop - start) - 16)

    def _read_array_record(self, i: int, path: str) -> bytes:
        """The library raises RuntimeError for a failing disk and for a damaged shard alike.

        A record counts as damaged when it cannot be read twice, and after each time every byte of its shard can.
        """
        for _ in range(2):
            try:
                with self._lock:
                    self._array_record = self._array_record or self._open()
                    return self._array_record[i]
            except RuntimeError as error:
                damage = f"{path} is damaged ({error})"
            self._array_record = None  # it would ask its failed reader for ever
            if damage in self._damages:  # or a damaged shard would be read to its end for each of its records
                break
            with self._gfile(path, "rb") as data:
                while data.read(1 << 24):
                    pass
        self._damages.add(damage)
        raise RecordError("", damage)

    def _shard_offsets(self, path: str) -> np.ndarray:
        """Where each record of a TFRecord file begins, and where the last one ends.

        Only the headers are read: uint64 length, uint32 checksum, then the data and its uint32 checksum. A file is
        gone through when the first of its records is asked for.
        """
        with self._lock:
            if path not in self._offsets:
                offsets = [0]
                with self._gfile(path, "rb") as data:
                    size = data.size()
                    while offsets[-1] + 16 <= size:
                        data.seek(offsets[-1])
                        (length,) = struct.unpack("<Q", data.read(8))
                        offsets.append(offsets[-1] + length + 16)
                self._offsets[path] = np.array(offsets, np.int64)
            return self._offsets[path]
