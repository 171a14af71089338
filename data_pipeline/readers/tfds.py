"""Any prepared TensorFlow Datasets dataset, by name, whatever its files are."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.documents import DataError, Document, FileError, Media, RecordError
from data_pipeline.readers import array_record, digest, parquet, tfds_features, tfrecord
from data_pipeline.readers.examples import Serialized, features
from data_pipeline.readers.interleaved import in_order
from data_pipeline.template import Template, unknown
from data_pipeline.tensorflow_alone import tensorflow


class Tfds:
    """Kind `tfds`: a record a document, its images and sounds encoded as they are stored.

    Args:
      split: "train", "validation" or "test".
      name: as `tfds.builder` takes it, "coco_captions" or "my_dataset/config:1.0.0". The dataset must be prepared.
      splits: for each of our splits the dataset's: {"train": "train[:95%]", "validation": "train[95%:]"}.
      data_dir: where it lies; "" for TFDS's default.
      template: "{image}a photo of a {label}": text with features in braces, see `Template`. An Image or Audio is put in
        as it is, a ClassLabel by its name, Text and numbers as text.
      learned: features of the template whose text the model learns to write; all text if empty.
      interleaved: instead of a template, the names of two sequences, ("images", "texts"): a text stands for itself, an
        empty one for the next image that is not empty.
      sample_rate: in hertz, of Audio that does not state its own.

    Raises:
      DataError: a key is wrong; the message names it and the nearest right one.
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
        tensorflow()
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(name, data_dir=data_dir or None)
        except tfds.core.DatasetNotFoundError as error:  # which goes on with the names of all there are
            raise DataError(f"dataset {name}: {str(error).splitlines()[0]}") from error
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

        try:
            self._files = {_shard(file): file for file in builder.info.splits[splits[split]].file_instructions}
        except ValueError as error:  # of TFDS's syntax
            raise DataError(f"dataset {name}: {str(error).splitlines()[-1]}") from error
        self._name, self._first, count = f"{builder.info.full_name}:{splits[split]}", {}, 0
        for shard, file in self._files.items():
            self._first[shard] = count
            count += file.take
        everything = sum(each.num_examples for each in builder.info.splits.values())
        self.size = int(builder.info.dataset_size) * count // max(everything, 1)  # TFDS knows no size of "train[:5%]"
        self._serialized = _reader_of(builder.info.file_format)
        files = [(shard.rsplit("/", 1)[-1], file.examples_in_shard) for shard, file in self._files.items()]
        self.fingerprint = digest(self._name, files, int(builder.info.dataset_size))

    def shards(self) -> Sequence[str]:
        """Files and which of their records: "train.tfrecord-00001-of-00002[0:3]"."""
        return tuple(self._files)

    def read(self, shard: str) -> Iterator[Document | RecordError]:
        """See `Reader.read`."""
        file, last, damaged = self._files[shard], -1, False
        end = file.skip + file.take
        for number, data in self._serialized(file.filename):
            if number >= end:
                return
            last, damaged = number, damaged or isinstance(data, FileError)
            if isinstance(data, FileError):
                yield data
            elif number >= file.skip:
                yield self._document(data, f"{self._name}[{self._first[shard] + number - file.skip}]")
        if last + 1 < end and not damaged:
            yield FileError(file.filename, f"has {last + 1} records; the dataset says {file.examples_in_shard}")

    def _document(self, data: bytes | RecordError, where: str) -> Document | RecordError:
        try:
            if isinstance(data, RecordError):
                raise data
            example = features(data)
            if self._template:
                parts = self._template.parts(lambda name, kind: self._only(example, name))
            else:
                parts = in_order(self._sequence(example))
            return Document(tuple(parts), where)
        except RecordError as error:
            return RecordError(where, error.why)
        # No UTF-8, samples that are none. Of a mistake in the code the record is innocent.
        except (ValueError, IndexError, struct.error, zlib.error) as error:
            return RecordError(where, f"cannot be read ({type(error).__name__}: {error})")

    def _only(self, example: Any, name: str) -> str | bytes:
        found = self._values(example, name)
        if len(found) != 1:
            raise RecordError("", f"its {name} has {len(found)} values")
        return found[0]

    def _sequence(self, example: Any) -> Iterator[str | Media]:
        media, texts = (self._values(example, name) for name in self._interleaved)
        media = [item for item in media if item]
        for text in texts:
            if text.strip():
                yield text
            elif media:
                yield Media(self._medium, media.pop(0))
        if media:
            raise RecordError("", f"{len(media)} more of {self._interleaved[0]} than empty texts")

    def _values(self, example: Any, name: str) -> list[str | bytes]:
        if name not in example:  # example[name] would make an empty one
            raise RecordError("", f"has no {name}")
        return tfds_features.values(self._features[name], example[name], self._rate)

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


def _shard(file: Any) -> str:
    return f"{file.filename}[{file.skip}:{file.skip + file.take}]"


def _reader_of(file_format: Any):
    """What reads the serialized records of a file in one of TFDS's formats."""
    known = {"tfrecord": tfrecord.serialized, "array_record": array_record.serialized, "parquet": _of_parquet}
    return known.get(file_format.value) or (lambda path: _by_tfds(path, file_format))


def _of_parquet(path: str) -> Serialized:
    """TFDS puts Examples into a column of bytes."""

    def data(schema: Any) -> list[str]:
        if "data" not in schema.names:
            raise FileError(path, f"has no column data but {', '.join(schema.names)}: TFDS did not write it")
        return ["data"]

    try:
        for number, row in parquet.rows(path, data):
            found = row if isinstance(row, RecordError) else row["data"]
            yield number, found if isinstance(found, bytes | RecordError) else RecordError("", "has no bytes in data")
    except FileError as error:
        yield 0, error


def _by_tfds(path: str, file_format: Any) -> Serialized:
    """A format of which TFDS alone knows how it is read (Riegeli); damage costs the rest of the file."""
    import tensorflow as tf
    from tensorflow_datasets.core.file_adapters import ADAPTER_FOR_FORMAT

    number = 0
    try:
        for data in ADAPTER_FOR_FORMAT[file_format].make_tf_data(path).as_numpy_iterator():
            yield number, data
            number += 1
    except ImportError as error:
        raise DataError(f"{path}: {file_format.value} needs a library that is not installed: {error}") from error
    except tf.errors.DataLossError as error:
        yield number, FileError(path, f"cannot be read to its end ({error.message[:200]})")
    except tf.errors.OpError as error:
        raise OSError(f"{path} cannot be read: {error.message}") from error
