"""A file to which a run appends JSON objects, one a line, over all its starts."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)
COMPLAIN_SECONDS = 60


class Lines:
    """Appends to a file; a line is there at once, and a kill costs one at most.

    A disk that is full does not end the run: what cannot be written waits in memory and is tried again with the next
    line.
    """

    def __init__(self, path: Path):
        """Opens the file, made when missing.

        Raises:
          OSError: it cannot be written.
        """
        self._path, self._waiting, self._complained = path, b"", -COMPLAIN_SECONDS
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self._file = path.open("ab", buffering=0)
        if torn and path.stat().st_size:
            self._write(b"\n")

    def append(self, line: dict) -> None:
        """Writes one object."""
        self._write(json.dumps(line).encode() + b"\n")

    def publish(self) -> None:
        """Closes the file and opens it again: a mounted bucket stores a file when it is closed, and not before."""
        self.close()
        self._write(b"")

    def close(self) -> None:
        self._write(b"")
        try:
            self._file.close()
        except OSError as error:
            self._complain(error)

    def _write(self, data: bytes) -> None:
        self._waiting += data
        try:
            if self._file.closed:
                self._file = self._path.open("ab", buffering=0)
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if time.monotonic() - self._complained >= COMPLAIN_SECONDS:
            self._complained = time.monotonic()
            log.error("%s CANNOT BE WRITTEN, its lines wait in memory: %s", self._path, error)


def read_lines(path: Path) -> Iterator[dict]:
    """The objects of a file in order; a line that a kill cut short is left out."""
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            yield json.loads(text)
        except ValueError:
            continue
