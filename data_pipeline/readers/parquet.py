"""Parquet: FineWeb and other text, img2dataset's pairs, datasets of the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.documents import DataError, FileError, Media, RecordError
from data_pipeline.files import opened
from data_pipeline.readers.file_reader import RecordReader
from data_pipeline.template import unknown

# Rows in memory at a time, of a row group of a million.
BATCH = 64


class Parquet(RecordReader):
    """Kind `parquet`: a row a document; of its columns only those of the template are read.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      template: text with columns in braces, see `Template`. "{jpg:image}" is a column with a file's bytes, or an image
        of the hub, {"bytes": ..., "path": ...}; "{metadata.title}" is a field of a column.
      learned: columns whose text the model learns to write; all text if empty.
    """

    def __init__(self, split: str, splits: dict[str, str], template: str = "{text}", learned: Sequence[str] = ()):
        super().__init__(split, splits, template, learned)
        self._columns = sorted({field.split(".")[0] for field in self._template.fields})

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        for i, row in enumerate(rows(path, self._columns, ["status"])):
            failed = "status" in row and "status" not in self._columns and row["status"] != "success"
            yield f"{path}[{i}]", RecordError("", f"img2dataset says: {row['status']}") if failed else row

    def media(self, path: str, field: str, kind: str, value: Any) -> bytes | Media:
        """See `RecordReader.media`: a column has the file itself."""
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise RecordError("", f"its {field} is {value!r:.40}, not the bytes of a file")
        return value


def rows(path: str, columns: Sequence[str], also: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a file, a few at a time.

    Args:
      path: of the file.
      columns: those that are read.
      also: those that are read if they are there.

    Raises:
      DataError: the file has no such column.
      FileError: it is no Parquet, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path) as source:
        try:
            # A reader of its own: one that two threads share fails.
            file = pq.ParquetFile(source, page_checksum_verification=True)
            names = file.schema_arrow.names
            if missing := [name for name in columns if name not in names]:
                raise DataError(f"{path}: column {unknown(missing[0], names)}")
            wanted = [*columns, *(name for name in also if name in names)]
            for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk; damage has no number
            raise FileError(path, f"it is no Parquet, or damaged ({error})") from error
