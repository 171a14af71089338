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

import numpy as np
from google.protobuf.message import DecodeError

from data_pipeline.documents import DataError, Document, Media, RecordError, Text
from data_pipeline.tensorflow_alone import tensorflow

log = logging.getLogger(__name__)
# Seconds between attempts when the file system gives an error.
WAITS = (0.1, 1.0, 10.0)


class TfdsSource:
    """Kind `tfds`.

    Args:
      split: "train", "validation" or "test".
      name: as `tfds.builder` takes it, "coco_captions" or "my_dataset/config:1.0.0". The dataset must be prepared.
      splits: for each of our splits the dataset's: {"train": "train[:95%]", "validation": "train[95%:]"}.
      data_dir: where it lies; "" for TFDS's default.
      template: "{image}a photo of a {label}": text with features in braces. An Image is put in as it is, a ClassLabel
        by its name, Text and numbers as text.
      interleaved: instead of a template, the names of two sequences, ("images", "texts"): a text stands for itself, an
        empty one for the next image that is not empty (in OBELICS, each position has exactly one of the two).

    Raises:
      DataError: a key is wrong; the message names it and the nearest right one.
      RecordError: from `source[i]`, for a record that is damaged or does not have what the template wants.
      OSError: from `source[i]`, when the file system still fails after `WAITS`.
    """

    def __init__(self, split: str, name: str, splits: dict, data_dir: str = "", template: str = "", interleaved=()):
        self._tf = tensorflow()
        import tensorflow_datasets as tfds

        self._features, self._tfds = {}, tfds
        builder = tfds.builder(name, data_dir=data_dir or None)
        if not builder.is_prepared():
            raise DataError(f"dataset {name} is not in {builder.data_dir}; run `tfds build {name}` first")
        if split not in splits:
            raise DataError(f"dataset {name}: splits names no {split!r}, only {', '.join(splits)}")
        self._all_features = builder.info.features
        interleaved = tuple(interleaved)
        if bool(template) == bool(interleaved):
            raise DataError(f"dataset {name}: give either template or interleaved")
        self._interleaved = interleaved
        self._template = [(text, field) for text, field, _, _ in string.Formatter().parse(template)]
        for field in interleaved or [field for _, field in self._template if field]:
            self._check(name, field)

        instructions = builder.info.splits[splits[split]].file_instructions
        self._records = _Records(instructions, str(builder.info.file_format.value), self._tf)
        self._name = f"{builder.info.full_name}:{splits[split]}"
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
            parts = self._sequence(example) if self._interleaved else self._filled_template(example)
        except RecordError as error:
            raise RecordError(where, error.why) from error
        # No protobuf, no UTF-8, an absent feature. Of a file system's error, or a mistake in the code, the record is
        # innocent.
        except (DecodeError, ValueError, LookupError, struct.error) as error:
            raise RecordError(where, f"cannot be read ({type(error).__name__}: {error})") from error
        return Document(tuple(parts), where)

    def _filled_template(self, example) -> list[Text | Media]:
        parts = [Text("")]
        for text, name in self._template:
            value = self._values(example, name)[0] if name else Text("")
            if isinstance(value, Media) and not value.data:
                raise RecordError("", f"its {name} is empty")
            for part in (Text(text), value):
                if isinstance(part, Text) and isinstance(parts[-1], Text):
                    parts[-1] = Text(parts[-1].text + part.text)
                else:
                    parts.append(part)
        return [part for part in parts if part != Text("")]

    def _sequence(self, example) -> list[Text | Media]:
        images, texts = (self._values(example, name) for name in self._interleaved)
        images, parts = [image for image in images if image.data], []
        for text in texts:
            if text.text.strip():
                # Two texts in a row are two paragraphs.
                parts.append(Text("\n" + text.text) if parts and isinstance(parts[-1], Text) else text)
            elif images:
                parts.append(images.pop(0))
        if images:
            raise RecordError("", f"{len(images)} more images than empty texts")
        return parts

    def _values(self, example, name: str) -> list[Text | Media]:
        features, feature, stored = self._tfds.features, self._features[name], example[name]
        if isinstance(feature, features.Image):
            return [Media("image", value) for value in stored.bytes_list.value]
        if isinstance(feature, features.Text):
            return [Text(value.decode()) for value in stored.bytes_list.value]
        if isinstance(feature, features.ClassLabel):
            return [Text(feature.int2str(value)) for value in stored.int64_list.value]
        return [Text(f"{value:g}") for value in (*stored.int64_list.value, *stored.float_list.value)]


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
