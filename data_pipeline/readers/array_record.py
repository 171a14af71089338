"""ArrayRecord files of tf.train.Examples, https://github.com/google/array_record."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.documents import FileError, RecordError
from data_pipeline.files import is_local, opened
from data_pipeline.readers.examples import ExampleReader, Serialized

# Records in memory at the same time.
RECORDS = 64


class ArrayRecord(ExampleReader):
    """Kind `array_record`: an Example a document.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      template: "{jpg:image}{txt}", see `ExampleReader`.
      learned: features whose text the model learns to write; all text if empty.
    """

    def __init__(self, split: str, splits: dict[str, str], template: str = "{text}", learned: Sequence[str] = ()):
        super().__init__(split, splits, template, learned)

    def serialized(self, path: str) -> Serialized:
        return serialized(path)


def serialized(path: str) -> Serialized:
    """The records of a file; one that is damaged costs itself, or those that are compressed with it."""
    with _on_disk(path) as local:
        reader = _reader(local)
        if not reader.ok() or not reader.is_open():
            yield 0, FileError(path, f"is cut off or damaged: the list of its records, at its end, {_why(reader)}")
            return
        count, is_checked = reader.num_records(), False
        for start in range(0, count, RECORDS):
            numbers = range(start, min(start + RECORDS, count))
            try:
                found = reader.read(numbers[0], numbers[-1] + 1)
                if len(found) < len(numbers):
                    raise RuntimeError("the file has fewer records than its list")
            except RuntimeError:
                if not is_checked:
                    _check_disk(local)
                    is_checked = True
                found = [_one(local, number) for number in numbers]
                reader = _reader(local)
            yield from zip(numbers, found, strict=True)


def _one(path: str, number: int) -> bytes | RecordError:
    try:
        return _reader(path).read([number])[0]
    except RuntimeError as error:
        return RecordError("", f"is damaged ({str(error)[:200]})")


def _reader(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    # Its default reads 16 MiB ahead in each of many threads; here every process has a file of its own.
    return ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")


def _why(reader: Any) -> str:
    try:
        reader.close()
    except RuntimeError as error:
        return f"cannot be read ({str(error)[:200]})"
    return "cannot be read"


def _check_disk(path: str):
    """Raises: OSError: it is the disk that fails; the library has one RuntimeError for that and for damage."""
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


@contextlib.contextmanager
def _on_disk(path: str) -> Iterator[str]:
    """The file's name on this machine; from a bucket it is copied."""
    if is_local(path):
        with open(path, "rb"):  # of a file that is not there the library says nothing
            yield path
        return
    with tempfile.NamedTemporaryFile() as copy:
        with opened(path) as file:
            shutil.copyfileobj(file, copy)
        copy.flush()
        yield copy.name
