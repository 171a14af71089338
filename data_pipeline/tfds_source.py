"""Any TensorFlow Datasets dataset as a source, by random access; its media stay encoded until their batch is made."""

import functools
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from data_pipeline import tfds_features
from data_pipeline.documents import DataError, Document, Media, RecordError, Text
from data_pipeline.readers import Listed, digest
from data_pipeline.retries import retried
from data_pipeline.template import Template, unknown
from data_pipeline.tensorflow_alone import tensorflow


class TfdsSource(Listed):
    """Kind `tfds`.

    Args:
      split: "train", "validation" or "test".
      name: as `tfds.builder` takes it, "coco_captions" or "my_dataset/config:1.0.0". The dataset must be prepared.
      splits: for each of our splits the dataset's: {"train": "train[:95%]", "validation": "train[95%:]"}.
      data_dir: where it lies; "" for TFDS's default.
      template: "{image}a photo of a {label}": text with features in braces, see `Template`. An Image or Audio is put in
        as it is, a ClassLabel by its name, Text and numbers as text.
      learned: features of the template whose text the model learns to write; all text if empty.
      interleaved: instead of a template, the names of two sequences, ("images", "texts"): a text stands for itself, an
        empty one for the next image that is not empty (in OBELICS, each position has exactly one of the two).
      sample_rate: in hertz, of Audio that does not state its own.

    Raises:
      DataError: a key is wrong; the message names it and the nearest right one.
      RecordError: from `source[i]`, for a record that is damaged or does not have what the template wants.
      OSError: from `source[i]`, when the file system still fails after `retries.WAITS`.
    """

    def __init__(
        self,
        split: str,
        name: str,
        splits: dict[str, str],
        data_dir: str = "",
        template: str = "",
        learned: Sequence[str] = (),
        interleaved: Sequence[str] = (),
        sample_rate: int = 0,
    ):
        self._tf = tensorflow()
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=data_dir or None)
        if not builder.is_prepared():
            raise DataError(f"dataset {name} is not in {builder.data_dir}; run `tfds build {name}` first")
        if split not in splits:
            raise DataError(f"dataset {name}: splits names no {split!r}, only {', '.join(splits)}")
        if bool(template) == bool(interleaved):
            raise DataError(f"dataset {name}: give either template or interleaved")
        if learned and interleaved:
            raise DataError(f"dataset {name}: learned names fields of a template; of interleaved, all text is learned")
        self._dataset, self._all_features, self._features = name, builder.info.features, {}
        self._rate, self._interleaved, self._template = sample_rate, tuple(interleaved), None
        if template:
            self._template = Template(template, learned, self._kind)
        else:
            self._medium, *others = (self._kind(field) for field in interleaved)
            if not self._medium or others != [""]:
                raise DataError(f"dataset {name}: interleaved is {self._interleaved}; name media first, then texts")

        instructions = builder.info.splits[splits[split]].file_instructions
        self._records = _Records(instructions, str(builder.info.file_format.value), self._tf)
        self._name = f"{builder.info.full_name}:{splits[split]}"
        files = [(Path(file.filename).name, file.skip, file.take, file.examples_in_shard) for file in instructions]
        identity = (self._name, files, str(builder.info.dataset_size), template, self._interleaved)
        identity += (tuple(learned), sample_rate) if learned or sample_rate else ()
        self.fingerprint = digest(*identity)

    def _kind(self, name: str, spec: str = "") -> str:
        """The modality of a feature, which is looked up once and kept for its values."""
        known = self._all_features
        if name not in known:
            raise DataError(f"dataset {self._dataset}: feature {unknown(name, list(known))}")
        sequence = bool(self._interleaved) and hasattr(known[name], "feature")
        feature = known[name].feature if sequence else known[name]
        kind = tfds_features.modality(feature)
        problem = f"dataset {self._dataset}: feature {name!r}"
        if kind is None:
            raise DataError(f"{problem} is {feature}; only images, audio, labels, texts and numbers fit")
        if spec not in ("", kind):
            raise DataError(f"{problem} is {kind or 'text'}, not {spec}; write {{{name}}}")
        if kind == "audio" and (why := tfds_features.audio_problem(feature, self._rate, sequence)):
            raise DataError(f"{problem} {why}")
        self._features[name] = feature
        return kind

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Document:
        where = f"{self._name}[{i}]"
        try:
            record = self._records[i]
            if not record:  # array_record's answer for a shard that was cut off
                raise RecordError("", "is empty")
            example = self._tf.train.Example.FromString(record).features.feature
            if self._template:
                parts = self._template.parts(lambda name, kind: self._values(example, name)[0])
            else:
                parts = self._sequence(example)
        except RecordError as error:
            raise RecordError(where, error.why) from error
        # No protobuf, no UTF-8, an absent feature. Of a file system's error, or a mistake in the code, the record is
        # innocent.
        except (DecodeError, ValueError, LookupError, struct.error, zlib.error) as error:
            raise RecordError(where, f"cannot be read ({type(error).__name__}: {error})") from error
        return Document(tuple(parts), where)

    def _sequence(self, example) -> list[Text | Media]:
        media, texts = (self._values(example, name) for name in self._interleaved)
        media, parts = [item for item in media if item], []
        for text in texts:
            if text.strip():
                # Two texts in a row are two paragraphs.
                parts.append(Text("\n" + text if parts and isinstance(parts[-1], Text) else text))
            elif media:
                parts.append(Media(self._medium, media.pop(0)))
        if media:
            raise RecordError("", f"{len(media)} more of {self._interleaved[0]} than empty texts")
        return parts

    def _values(self, example, name: str) -> list[str | bytes]:
        return tfds_features.values(self._features[name], example[name], self._rate)


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
        return retried(lambda: self._read(i), f"record {i}", self._file_errors)

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
