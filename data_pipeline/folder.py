"""A folder with a table of what is in it: a line a document, with text and the names of files."""

import csv
import io
import json
import posixpath
from collections.abc import Sequence

from etils import epath

from data_pipeline.documents import DataError, Document, RecordError
from data_pipeline.media import MEDIA
from data_pipeline.readers import Listed, digest
from data_pipeline.retries import retried
from data_pipeline.template import Template, unknown
from data_pipeline.tensorflow_alone import tensorflow

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Errors that a second attempt would meet again.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class FolderSource(Listed):
    """Kind `folder`.

    A table is CSV or TSV (`.csv`, `.tsv`: UTF-8, quotes as Excel writes them, names of the columns first) or JSON Lines
    (`.jsonl`: an object a line, its values text or numbers). Lines that are empty are passed over.

    Files are named relative to the table, and lie in the folder; links in it are followed wherever they lead. The
    fingerprint is that of the table, the template and `learned`: a file that changes under its old name is not seen.

    Args:
      split: "train", "validation" or "test".
      path: the folder, on a disk or in a bucket ("gs://bucket/folder", as `etils.epath` reads it).
      splits: for each split the name of its table: {"train": "train.csv", "validation": "validation.csv"}.
      template: "{file:audio}Transcript: {transcript}": text with columns in braces, `{column:audio}` for one that names
        a file of that modality; see `Template`.
      learned: columns whose text the model learns to write; all text if empty.

    Raises:
      DataError: a key is wrong, or no line of the table can be read.
      RecordError: from `source[i]`, for a line that is none, a file that is missing or lies elsewhere.
      OSError: from `source[i]`, when the file system still fails after `retries.WAITS`.
    """

    def __init__(self, split: str, path: str, splits: dict[str, str], template: str, learned: Sequence[str] = ()):
        if split not in splits:
            raise DataError(f"folder {path}: splits names no {split!r}, only {', '.join(splits)}")
        self._path, self._table = epath.Path(path).expanduser(), splits[split]
        self._name, self._errors = f"{path}/{self._table}", (OSError,)
        # Where etils has no other library for an address it is TensorFlow that reads, which has errors of its own.
        if "://" in path:
            self._errors += (tensorflow().errors.OpError,)
        kind = posixpath.splitext(self._table)[1].lower()
        if kind not in (*DELIMITERS, ".jsonl"):
            raise DataError(f"{self._name}: a table ends in {', '.join(DELIMITERS)} or .jsonl")
        try:
            table = self._read(self._table)
        except MISSING as error:
            raise DataError(f"{self._name}: there is no such table") from error
        # None: each line of JSON has its own.
        self._columns = None
        if kind == ".jsonl":
            self._lines = [(n, line) for n, line in enumerate(table.split(b"\n"), 1) if line.strip()]
        else:
            self._columns, self._lines = _cells(table, DELIMITERS[kind], self._name)
        self._template = Template(template, learned, self._kind)
        self.fingerprint = digest(self._table, table, template, tuple(learned))

    def _kind(self, column: str, spec: str) -> str:
        if self._columns is not None and column not in self._columns:
            raise DataError(f"{self._name}: column {unknown(column, self._columns)}")
        if spec and spec not in MEDIA:
            raise DataError(f"{self._name}: in {{{column}:{spec}}}, {unknown(spec, list(MEDIA))}")
        return spec

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, i: int) -> Document:
        number, line = self._lines[i]
        where = f"{self._name}:{number}"
        try:
            record = _json_object(line) if self._columns is None else self._row(line)
            return Document(tuple(self._template.parts(lambda name, kind: self._value(record, name, kind))), where)
        except RecordError as error:
            raise RecordError(where, error.why) from error

    def _row(self, cells: list[str]) -> dict[str, str]:
        if len(cells) != len(self._columns):
            raise RecordError("", f"has {len(cells)} cells; the table has {len(self._columns)} columns")
        return dict(zip(self._columns, cells, strict=True))

    def _value(self, record: dict, column: str, kind: str) -> str | bytes:
        if column not in record:
            raise RecordError("", f"{unknown(column, list(record))}")
        value = record[column]
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise RecordError("", f"its {column} is {json.dumps(value)[:40]}, no text")
        return self._file(value, column) if kind else value

    def _file(self, name: str, column: str) -> bytes:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self._table), name))
        if not name or "://" in name or posixpath.isabs(name) or path.split("/")[0] == "..":
            raise RecordError("", f"its {column} {name!r} is no file in the folder")
        try:
            return self._read(path)
        except (*MISSING, ValueError) as error:  # ValueError: a name that no file can have
            raise RecordError("", f"its {column} {name!r} is no file in the folder") from error

    def _read(self, name: str) -> bytes:
        path = self._path / name
        return retried(path.read_bytes, str(path), self._errors, MISSING)


def _cells(table: bytes, delimiter: str, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns' names, and of each other line its number and cells; a cell may go over several lines."""
    try:
        text = io.StringIO(table.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = table.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}:{line}: is no UTF-8 ({error.reason}); save the table as UTF-8") from error
    reader, found, number = csv.reader(text, delimiter=delimiter, strict=True), [], 1
    try:
        for cells in reader:
            if cells:
                found.append((number, cells))
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{where}:{number}: {error}") from error
    if not found:
        raise DataError(f"{where}: is empty; its first line names the columns")
    (_, columns), *rows = found
    if len(set(columns)) < len(columns):
        raise DataError(f"{where}: two columns have one name: {', '.join(columns)}")
    return columns, rows


def _json_object(line: bytes) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:  # no JSON, or no UTF-8
        raise RecordError("", f"is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordError("", f"is no JSON object but {line.decode()[:40]}")
    return record
