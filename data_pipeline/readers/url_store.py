"""Images by address, for corpora that hold addresses alone: an index of what img2dataset downloaded.

    img2dataset --url_list urls.parquet --output_format webdataset --output_folder images ...
    python -m data_pipeline.readers.url_store images/urls.sqlite 'images/*.tar'

The index is an SQLite file with two tables: `tars(id, path)`, paths from the index's own folder on, and
`images(url, tar, start, size)`. An image of 353 million, as many as OBELICS has, costs about 200 bytes.
"""

import os.path
import sqlite3
import sys
from collections.abc import Iterator
from urllib.parse import quote

from data_pipeline.documents import DataError, FileError, Media, Place, RecordError
from data_pipeline.files import damages, file_system, found, is_local
from data_pipeline.media import host
from data_pipeline.readers import parquet
from data_pipeline.readers.file_reader import MISSING
from data_pipeline.readers.tar import on_disk, scan
from data_pipeline.retries import retried

SCHEMA = "CREATE TABLE tars (id INTEGER PRIMARY KEY, path TEXT); CREATE TABLE images (url TEXT, tar, start, size)"


class UrlStore:
    """Looks images up; one for each thread.

    Raises:
      DataError: the file is not there, or no index.
    """

    def __init__(self, path: str):
        path = os.path.abspath(os.path.expanduser(path))
        self._path, self._folder = path, os.path.dirname(path)
        if not os.path.isfile(path):
            raise DataError(f"{path}: there is no such file; python -m data_pipeline.readers.url_store makes it")
        try:
            self._index = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True, check_same_thread=False)
            self._tars = dict(self._index.execute("SELECT id, path FROM tars"))
            self._index.execute("SELECT url, tar, start, size FROM images LIMIT 1")
        except sqlite3.Error as error:
            raise DataError(f"{path} is no index of images ({error}); make it again") from error

    def close(self):
        self._index.close()

    def find(self, url: str) -> Media | None:
        """The image of an address; None if it was not downloaded.

        Raises:
          RecordError: without the record's name; the tars are others than were indexed.
        """
        query = "SELECT tar, start, size FROM images WHERE url = ? LIMIT 1"
        try:
            row = self._index.execute(query, (url,)).fetchone()
        except sqlite3.Error as error:
            raise DataError(f"{self._path} is damaged ({error}); make it again") from error
        if row is None:
            return None
        tar, start, size = row
        if tar not in self._tars:
            raise DataError(f"{self._path} names no tar {tar}; make it again")
        path = self._tars[tar]
        path = os.path.join(self._folder, path) if is_local(path) else path
        system, name = file_system(path)
        try:
            data = retried(lambda: system.cat_file(name, start, start + size), path, final=MISSING)
        except MISSING as error:
            raise RecordError("", f"the tar of its image {url} is gone: {path}") from error
        if len(data) < size:
            raise RecordError("", f"of its image {url}, {path} has only {len(data)} of {size} bytes")
        return Media("image", data, Place(path, start, size))


def write_store(path: str, pattern: str) -> int:
    """Makes the index of tars, each with its table beside it as img2dataset writes them; how many images it has.

    Raises:
      DataError: a tar or its table is not there, or damaged.
    """
    path = os.path.abspath(os.path.expanduser(path))
    new = f"{path}.new"
    if os.path.exists(new):
        os.remove(new)
    index, total = sqlite3.connect(new), 0
    try:
        index.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {SCHEMA}")
        for number, tar in enumerate(found(pattern)):
            name = os.path.relpath(tar, os.path.dirname(path)) if is_local(tar) else tar
            index.execute("INSERT INTO tars VALUES (?, ?)", (number, name))
            images = [(url, number, *place) for url, place in _images(tar)]
            index.executemany("INSERT INTO images VALUES (?, ?, ?, ?)", images)
            total += len(images)
        # Made afterwards it is sorted once; row by row it would be written all over the disk.
        index.execute("CREATE INDEX images_by_url ON images (url)")
        index.commit()
    finally:
        index.close()
    os.replace(new, path)
    return total


def _images(tar: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Of each image of a tar the address, and its offset and size."""
    members = {}
    with on_disk(tar) as (file, _):
        try:
            for member, offset, size in scan(file):
                key, suffix = os.path.splitext(member.rsplit("/", 1)[-1])
                if suffix.lower() in host("image").SUFFIXES:
                    members[key] = offset, size
        except damages() as error:
            raise FileError(tar, f"is damaged: {error}; download it again") from error
    table = tar.removesuffix(".tar") + ".parquet"
    try:
        for number, row in parquet.rows(table, lambda schema: _columns(table, schema)):
            if isinstance(row, FileError):
                raise row
            if isinstance(row, RecordError):
                raise FileError(f"{table}:{number}", row.why)
            if row["key"] in members and isinstance(row["url"], str):
                yield row["url"], members[row["key"]]
    except FileNotFoundError as error:
        raise DataError(f"{table}: there is no such file; img2dataset writes it beside {tar}") from error


def _columns(table: str, schema) -> list[str]:
    if missing := [name for name in ("url", "key") if name not in schema.names]:
        raise FileError(table, f"has no column {missing[0]}, only {', '.join(schema.names)}")
    return ["url", "key"]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m data_pipeline.readers.url_store INDEX.sqlite 'TARS'")
    try:
        print(f"{write_store(*sys.argv[1:]):,} images")
    except DataError as error:
        sys.exit(str(error))
