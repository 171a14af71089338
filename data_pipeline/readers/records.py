"""TFRecord and ArrayRecord files of tf.train.Examples: img2dataset's tfrecord, T5's and Grain's corpora."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.documents import Media, RecordError
from data_pipeline.readers.examples import DAMAGED, first_value, parsed, serialized
from data_pipeline.readers.file_reader import RecordReader


class TfRecord(RecordReader):
    """Kind `tfrecord`: an example a document, in `.tfrecord`, also with `.gz`; checksums are checked.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      template: text with features of the example in braces, see `Template`; "{image:image}" is one with a file's bytes.
        img2dataset's have "{jpg:image}{txt}".
      learned: features whose text the model learns to write; all text if empty.
    """

    FORM = "tfrecord"

    def __init__(self, split: str, splits: dict[str, str], template: str = "{text}", learned: Sequence[str] = ()):
        super().__init__(split, splits, template, learned)

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        for i, record in enumerate(serialized(path, self.FORM)):
            yield f"{path}[{i}]", record if isinstance(record, RecordError) else _values(record)

    def media(self, path: str, field: str, kind: str, value: Any) -> bytes | Media:
        """See `RecordReader.media`: a feature has the file itself."""
        if not isinstance(value, bytes):
            raise RecordError("", f"its {field} is no file's bytes")
        return value


class ArrayRecord(TfRecord):
    """Kind `array_record`: the same in ArrayRecord files."""

    FORM = "array_record"


def _values(record: bytes) -> dict[str, Any] | RecordError:
    try:
        return {name: first_value(feature) for name, feature in parsed(record).items()}
    except DAMAGED as error:
        return RecordError("", f"cannot be read ({type(error).__name__}: {error})")
