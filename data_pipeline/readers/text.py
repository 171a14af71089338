"""Plain text: books, Wikipedia dumps, lines of anything."""

from collections.abc import Iterable, Iterator, Sequence

from data_pipeline.documents import DataError, Document, RecordError, Text
from data_pipeline.files import decompressed
from data_pipeline.readers.file_reader import FileReader

UNITS = ("file", "block", "line")


class PlainText(FileReader):
    """Kind `text`: UTF-8, also with `.gz`, `.zst`, `.xz` or `.bz2`.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      unit: what a document is: "file"; "block", what stands between empty lines; or "line". Memory holds one.

    Raises:
      DataError: `unit` is none of those.
    """

    def __init__(self, split: str, splits: dict[str, str | Sequence[str]], unit: str = "file"):
        super().__init__(split, splits)
        if unit not in UNITS:
            raise DataError(f"unit {unit!r} is none of {', '.join(UNITS)}")
        self._unit = unit

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        with decompressed(path) as file:
            if self._unit == "file":
                yield _document(file.read(), path)
                return
            for number, data in _blocks(file) if self._unit == "block" else enumerate(file, 1):
                if not data.isspace():
                    yield _document(data, f"{path}:{number}")


def _blocks(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The number of the first line, and the lines, of what stands between empty ones."""
    first, block = 1, []
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            block.append(line)
            continue
        if block:
            yield first, b"".join(block)
        first, block = number + 1, []
    if block:
        yield first, b"".join(block)


def _document(data: bytes, where: str) -> Document | RecordError:
    try:
        text = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return RecordError(where, f"is no UTF-8 ({error.reason} at byte {error.start})")
    return Document((Text(text),), where) if text.strip() else RecordError(where, "is empty")
