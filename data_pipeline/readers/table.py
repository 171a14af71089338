"""CSV and TSV: a line a document, with text and the names of files."""

import csv
import functools
import io
from collections.abc import Iterator

from data_pipeline.documents import DataError, FileError, RecordError
from data_pipeline.files import COMPRESSIONS, decompressed
from data_pipeline.readers.file_reader import RecordReader
from data_pipeline.template import unknown

DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Table(RecordReader):
    """Kind `table`: `.csv` or `.tsv`, either also with `.gz`, `.zst`, `.xz` or `.bz2`.

    UTF-8, quotes as Excel writes them, names of the columns first. Lines that are empty are passed over.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      template: "{file:audio}Transcript: {transcript}": text with columns in braces, `{column:audio}` for one that names
        a file of that modality, relative to the table's own folder; see `Template`.
      learned: columns whose text the model learns to write; all text if empty.

    Raises:
      DataError: a key is wrong, or the first table has no such column.
    """

    def kind_of(self, field: str, spec: str) -> str:
        if field not in self._columns:
            raise DataError(f"{self._files[0]}: column {unknown(field, self._columns)}")
        return super().kind_of(field, spec)

    @functools.cached_property
    def _columns(self) -> list[str]:
        return _header(self._files[0], _rows(self._files[0]))

    def records(self, path: str) -> Iterator[tuple[str, dict[str, str] | RecordError]]:
        rows = _rows(path)
        columns = _header(path, rows)
        for number, cells in rows:
            if isinstance(cells, RecordError):
                record = cells
            elif len(cells) != len(columns):
                record = RecordError("", f"has {len(cells)} cells; the table has {len(columns)} columns")
            else:
                record = dict(zip(columns, cells, strict=True))
            yield f"{path}:{number}", record


def _header(path: str, rows: Iterator[tuple[int, list[str] | RecordError]]) -> list[str]:
    number, columns = next(rows, (1, []))
    if isinstance(columns, RecordError):
        raise FileError(f"{path}:{number}", columns.why)
    if not columns:
        raise FileError(path, "is empty; its first line names the columns")
    if len(set(columns)) < len(columns):
        raise FileError(path, f"two columns have one name: {', '.join(columns)}")
    return columns


def _rows(path: str) -> Iterator[tuple[int, list[str] | RecordError]]:
    """Of each line that is not empty its number and cells; a cell may go over several lines."""
    suffix = next((suffix for suffix in DELIMITERS if path.lower().endswith(_endings(suffix))), None)
    if suffix is None:
        raise DataError(f"{path}: a table ends in {' or '.join(DELIMITERS)}; .jsonl is of kind jsonl")
    with decompressed(path) as file:
        # Quotes are found whatever the bytes between them are; so a line that is no UTF-8 costs itself alone.
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        reader, number = csv.reader(text, delimiter=DELIMITERS[suffix], strict=True), 1
        while True:
            try:
                cells = next(reader, None)
                if cells is None:
                    return
                if cells:
                    "".join(cells).encode()
                    yield number, cells
            except csv.Error as error:
                yield number, RecordError("", str(error))
            except UnicodeEncodeError as error:
                byte = ord(error.object[error.start]) - 0xDC00
                yield number, RecordError("", f"is no UTF-8 (byte 0x{byte:02x}); save the table as UTF-8")
            number = reader.line_num + 1


def _endings(suffix: str) -> tuple[str, ...]:
    return (suffix, *(suffix + compression for compression in COMPRESSIONS))
