"""Parquet: FineWeb, what img2dataset wrote, columns of images and sounds as Hugging Face's datasets have them.

https://parquet.apache.org/docs/file-format/, https://huggingface.co/docs/datasets/about_dataset_features
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.documents import Absent, DataError, FileError, Media, RecordError
from data_pipeline.files import opened
from data_pipeline.readers.file_reader import RecordReader
from data_pipeline.template import unknown

# Rows that are in memory at the same time, and bytes of each column that are read at once.
ROWS = 64
BUFFER = 1 << 20


class Parquet(RecordReader):
    """Kind `parquet`: a row a document.

    Only the columns of the template are read. Damage costs the rest of its row group; rows that img2dataset could not
    download are left out as absent.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      template: text with columns in braces, see `Template`; `{meta.title}` is a field of a struct. `{jpg:image}` is a
        column of files: their bytes, a struct of bytes and path (Hugging Face's Image and Audio), or names of files
        relative to the table's own.
      learned: columns whose text the model learns to write; all text if empty.

    Raises:
      DataError: a key is wrong, or the first file has no such column, or one that does not fit.
    """

    def __init__(self, split: str, splits: dict[str, str], template: str = "{text}", learned: Sequence[str] = ()):
        self._fields = {}
        super().__init__(split, splits, template, learned)

    def kind_of(self, field: str, spec: str) -> str:
        kind = self._fields[field] = super().kind_of(field, spec)
        if self._first:
            path, schema = self._first
            _check_column(path, schema, field, kind)
        return kind

    @functools.cached_property
    def _first(self) -> tuple[str, Any] | None:
        """The first file that is not damaged, and its schema."""
        for path in self._files:
            with contextlib.suppress(FileError):
                return path, schema(path)
        return None

    def media(self, path: str, field: str, kind: str, value: Any) -> bytes | Media:
        if isinstance(value, dict):
            value = value["path"] if value.get("bytes") is None and "path" in value else value.get("bytes")
        return super().media(path, field, kind, value)

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        for number, row in rows(path, functools.partial(self._columns, path)):
            where = f"{path}[{number}]"
            if isinstance(row, dict) and str(row.get("status")).startswith("failed"):
                row = Absent(where, f"its status is {row['status']}: {row.get('error_message')}")
            yield where, row

    def _columns(self, path: str, schema: Any) -> list[str]:
        for field, kind in self._fields.items():
            _check_column(path, schema, field, kind)
        return [*self._fields, *(name for name in ("status", "error_message") if name in schema.names)]


def schema(path: str) -> Any:
    """The columns of a file, a `pyarrow.Schema`.

    Raises:
      FileError: it is damaged.
    """
    with opened(path) as file:
        return _parquet_file(path, file).schema_arrow


def rows(path: str, columns: Callable[[Any], Sequence[str]]) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
    """The rows of a file with their numbers; for what is damaged of a row group, one `FileError`.

    Args:
      path: of the file.
      columns: of its schema, those that are wanted; it raises `FileError` if they are not there.
    """
    with opened(path) as file:
        parquet = _parquet_file(path, file)
        if len(set(parquet.schema_arrow.names)) < len(parquet.schema_arrow.names):
            raise FileError(path, "two columns have one name")
        wanted, start = list(dict.fromkeys(columns(parquet.schema_arrow))), 0
        for group in range(parquet.num_row_groups):
            number, end = start, start + parquet.metadata.row_group(group).num_rows
            try:
                with undamaged(path):
                    for batch in parquet.iter_batches(ROWS, [group], wanted, use_threads=False):
                        batch.validate(full=False)
                        for row in _rows(batch):
                            yield number, row
                            number += 1
                if number < end:
                    raise FileError(path, f"its row group {group} has fewer rows than it says")
            except FileError as error:
                yield number, FileError(path, f"{error.why}; left out from row {number} to {end}")
            start = end


def _parquet_file(path: str, file: Any) -> Any:
    import pyarrow.parquet

    with undamaged(path):
        # Without pre_buffer a row group, which may have gigabytes, is not read at once. It is never shared: two threads
        # cannot read from one ParquetFile.
        parquet = pyarrow.parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True
        )
        parquet.schema_arrow.names  # noqa: B018, of a damaged file even this may raise
        return parquet


def _rows(batch: Any) -> Iterator[dict[str, Any] | RecordError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield RecordError("", f"has text that is no UTF-8 ({error.reason} at byte {error.start})")


@contextlib.contextmanager
def undamaged(path: str) -> Iterator[None]:
    """What pyarrow raises of a damaged file as a `FileError`; what the file system raises as it is."""
    import pyarrow

    try:
        yield
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        # pyarrow has an OSError without a number for damage, and a MemoryError for a length that is none.
        if isinstance(error, OSError) and not (type(error) is OSError and error.errno is None):
            raise
        raise FileError(path, f"cannot be read to its end ({type(error).__name__}: {str(error)[:200]})") from error


def _check_column(path: str, schema: Any, field: str, kind: str):
    """Raises: FileError: there is no such column, or it cannot hold what the template wants of it."""
    column = _column(path, schema, field)
    if kind and not (_is_text(column) or _is_struct_of_file(column)):
        raise FileError(path, f"column {field} is {column}; {kind}s are bytes, structs of bytes and path, or names")
    if not kind and not (_is_text(column) or _is_number(column)):
        raise FileError(path, f"column {field} is {column}, no text; write {{{field}:image}} if it holds images")


def _column(path: str, schema: Any, field: str) -> Any:
    """The type of a column, or of a field of a struct."""
    import pyarrow

    names = [field] if field in schema.names else field.split(".")
    within = pyarrow.struct(list(schema))
    for depth, name in enumerate(names):
        known = [child.name for child in within] if pyarrow.types.is_struct(within) else []
        if name not in known:
            before = "".join(f"{part}." for part in names[:depth])
            raise FileError(path, f"column {unknown(field, [before + name for name in known] or schema.names)}")
        within = within.field(name).type
    return within


def _is_text(column: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(column):
        return _is_text(column.value_type)
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(fits(column) for fits in (*texts, types.is_binary_view, types.is_fixed_size_binary, types.is_null))


def _is_number(column: Any) -> bool:
    from pyarrow import types

    return types.is_integer(column) or types.is_floating(column)


def _is_struct_of_file(column: Any) -> bool:
    from pyarrow import types

    return types.is_struct(column) and {"bytes", "path"} & {field.name for field in column} != set()
