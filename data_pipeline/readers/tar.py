"""Tars of samples, as webdataset and img2dataset write them: LAION, COYO, CC12M, DataComp."""

import contextlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

from data_pipeline.documents import Place, RecordError
from data_pipeline.files import COMPRESSIONS, damages, decompressed
from data_pipeline.readers.samples import SampleReader
from data_pipeline.retries import retried

BLOCK = 512
# Types of members: files, what has no data whatever its size, and headers that say more of the next member.
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
HEADERS = (*PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
MAX_HEADER = 1 << 20


class Tar(SampleReader):
    """Kind `tar`: `.tar`, also with `.gz`, `.zst`, `.xz` or `.bz2`.

    A shard's headers are read first, its members one sample at a time afterwards: members of a sample may lie apart,
    and memory holds names and places alone. What is compressed or in a bucket goes through a temporary file.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`: "laion/{00000..41407}.tar".
      template: text with suffixes of members in braces, see `SampleReader`.
      learned: fields of the template whose text the model learns to write; all text if empty.
    """

    def __init__(
        self, split: str, splits: dict[str, str], template: str = "{image:image}{txt}", learned: Sequence[str] = ()
    ):
        super().__init__(split, splits, template, learned)

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        with _on_disk(path) as (file, damage):
            members = []
            try:
                for name, offset, size in scan(file):
                    members.append((name, partial(_read, file.fileno(), path, offset, size)))
            except damages() as error:
                damage = damage or error
            for key, record in self.samples(members):
                yield f"{path}:{key}", record
        if damage:
            raise damage


def scan(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file in a tar, or in several that stand one after another.

    The standard library reads the headers, but goes from one to the next here: its own walk takes a broken header for
    the end, and can go on for ever where a size is negative (CVE-2025-8194). Formats: ustar, GNU, PAX (POSIX.1-2001).
    Links are passed over, and so are files that are stored without their holes.

    Raises:
      ValueError: it is damaged or cut off.
    """
    end = os.fstat(file.fileno()).st_size
    at, closed, extra = 0, False, {}
    while at < end or not closed:
        header = os.pread(file.fileno(), BLOCK, at)
        closed = header == bytes(BLOCK)
        if closed:
            at += BLOCK
            continue
        if not header and at:
            raise ValueError("it ends without the empty blocks that close a tar")
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise ValueError(f"no header of a tar at byte {at}: {error}") from error
        at += BLOCK
        is_header = member.type in HEADERS
        size = 0 if member.type in EMPTY else member.size if is_header else int(extra.get("size", member.size))
        if not 0 <= size <= (min(end - at, MAX_HEADER) if is_header else end - at):
            raise ValueError(f"{member.name} at byte {at} has {size} bytes, and the file ends at {end}")
        if is_header:
            data = os.pread(file.fileno(), size, at)
            if member.type in PAX:
                extra |= _pax(data)
            elif member.type == tarfile.GNUTYPE_LONGNAME:
                extra["path"] = _name(data.rstrip(b"\0"))
        else:
            if member.type in PLAIN and not any(key.startswith("GNU.sparse") for key in extra):
                yield extra.get("path", member.name), at, size
            extra = {}
        at += -(-size // BLOCK) * BLOCK


def _pax(data: bytes) -> dict[str, str]:
    """Lines "30 path=a very long name.jpg\\n", each with its own length first."""
    at, found = 0, {}
    while data[at : at + 1].strip(b"\0"):
        space = data.index(b" ", at)
        end = at + int(data[at:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or not equals:
            raise ValueError("a header with a long name is damaged")
        found[_name(key)], at = _name(value), end
    return found


def _name(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _read(file: int, path: str, offset: int, size: int) -> tuple[bytes, Place | None]:
    data = retried(partial(os.pread, file, size, offset), path)
    if len(data) < size:
        raise RecordError("", f"only {len(data)} of its {size} bytes could be read")
    return data, None if path.endswith(COMPRESSIONS) else Place(path, offset, size)


@contextlib.contextmanager
def _on_disk(path: str) -> Iterator[tuple[BinaryIO, Exception | None]]:
    """A tar as a plain file of this machine, and what cut it off while it was copied."""
    if "://" not in path and not path.endswith(COMPRESSIONS):
        with open(path, "rb") as file:
            yield file, None
        return
    with tempfile.TemporaryFile() as file:
        damage = None
        try:
            with decompressed(path) as packed:
                shutil.copyfileobj(packed, file)
        except damages() as error:
            damage = error
        file.flush()
        yield file, damage
