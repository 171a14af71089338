"""Images by their address: where img2dataset's tars have what a corpus of documents only names."""

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.documents import Place
from data_pipeline.files import damages, found
from data_pipeline.readers import digest
from data_pipeline.readers.tar import scan
from data_pipeline.shards import read_place


class UrlStore:
    """Addresses and places in a file of SQLite, which is made of the tars when it is missing.

    img2dataset writes KEY.jpg and KEY.json, and the json's `url` is the address. The file lies beside the tars, or in
    the system's temporary folder where that cannot be written.
    """

    def __init__(self, pattern: str):
        """Args: pattern: of the tars, see `files.found`; on a disk."""
        self._tars = found(pattern)
        self.fingerprint = digest([(Path(path).name, size) for path, size in self._tars.items()])
        name = f"addresses-{self.fingerprint}.sqlite"
        folder = Path(next(iter(self._tars))).parent
        folder = folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
        self._file = folder / name
        if not self._file.exists():
            self._build()
        self._database = sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, check_same_thread=False)

    def __getitem__(self, address: str) -> tuple[bytes, Place] | None:
        """The image's bytes and their place; None if no tar has it."""
        query = "select tar, first, size from images where address = ?"
        row = self._database.execute(query, (_hash(address),)).fetchone()
        if row is None:
            return None
        place = Place(list(self._tars)[row[0]], row[1], row[2])
        return read_place(place), place

    def _build(self):
        from tqdm import tqdm

        with tempfile.TemporaryDirectory(prefix=".writing-", dir=self._file.parent) as folder:
            database = sqlite3.connect(f"{folder}/{self._file.name}")
            database.execute(
                "create table images (address blob primary key, tar int, first int, size int) without rowid"
            )
            for n, path in enumerate(tqdm(self._tars, "addresses of images", unit=" tars", delay=2, disable=None)):
                rows = ((_hash(address), n, first, size) for address, first, size in _addresses(path))
                database.executemany("insert or ignore into images values (?, ?, ?, ?)", rows)
            database.commit()
            database.close()
            Path(folder, self._file.name).replace(self._file)


def _hash(address: str) -> bytes:
    return hashlib.blake2b(address.encode(errors="replace"), digest_size=12).digest()


def _addresses(path: str) -> Iterator[tuple[str, int, int]]:
    """Address, offset and size of each image of a tar, as far as it can be read."""
    samples = {}
    with open(path, "rb") as file:
        try:
            for name, first, size in scan(file):
                key, _, suffix = name.rpartition(".")
                samples.setdefault(key, {})[suffix] = (first, size)
        except damages():
            pass  # the rest of the images are missing then, as those that could not be downloaded are
        for members in samples.values():
            images = [place for suffix, place in members.items() if suffix not in ("json", "txt")]
            if "json" in members and images:
                first, size = members["json"]
                try:
                    address = json.loads(os.pread(file.fileno(), size, first))["url"]
                except (ValueError, LookupError, TypeError):
                    continue
                yield str(address), *images[0]
