"""Web archives, record by record: WARC (ISO 28500) by FastWARC, and ARC, which came before it.

https://iipc.github.io/warc-specifications, https://archive.org/web/researcher/ArcFileFormat.php

What is damaged is passed over, up to the next record that can be read. A record whose length is wrong takes parts of
others along, or leaves some of itself behind; either way what follows it is no record, so it is given only after that.
"""

import contextlib
import gzip
import io
import re
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data_pipeline.documents import FileError, RecordError
from data_pipeline.files import damages, opened

# What is read of a record at most; responses may be compressed, and then what becomes of them too.
MAX_SIZE = 1 << 26
# The headers of a response stand before that.
HEAD = 1 << 14
MAX_HEADER = 1 << 15
GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
# First bytes of pages and pictures.
UNPACKED = (b"<", b"\xef\xbb\xbf<", b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")
# Places that look like the beginning of a record and are none, one after another, before a file is given up.
ATTEMPTS = 1000
BLOCK = 1 << 20
# What a cut in compressed data takes along of what stands before.
SMALL_BLOCK = 1 << 12
# URL, IP address, date, type, five more in version 2, length; there are URLs with spaces in them.
ARC_HEADER = re.compile(rb"([a-z]+:.{1,8000}) \S+ \d{12,18} (\S+)(?: \S+ \S+ \S+ \d+ \S+)? (\d{1,18})\r?\n")


class Record(NamedTuple):
    """A record of an archive.

    Attributes:
      offset: where to find it again; None in a file whose records are not compressed one by one.
      url: what it was found under.
      mime: of what the record holds, "" if that is an HTTP response with its headers.
      data: what it holds, up to some limit.
      size: how many bytes it holds.
    """

    offset: int | None
    url: str
    mime: str
    data: bytes
    size: int


class Response(NamedTuple):
    """Attributes: mime: "text/html". charset: as the headers have it, None if they do not. data: decoded."""

    mime: str
    charset: str | None
    data: bytes


class Archive:
    """An archive of which records can be read in order, and by offset."""

    def __init__(self, path: str, file: BinaryIO, again: BinaryIO):
        """Args: path: for messages. file: for `scan`. again: the same file, opened for `at`, as both move in it."""
        self._path, self._file, self._again = path, file, again
        self._magic = file.read(len(GZIP))
        self._arc = self._magic == b"fil"

    def scan(self, limit: int = MAX_SIZE) -> Iterator[tuple[str, Record | RecordError]]:
        """Name and content of each record that may be a page or a picture; or what is wrong with it.

        Args:
          limit: how many bytes of each are read.
        """
        at, size, attempts, lost = 0, 0, 0, None
        while True:
            last = None
            try:
                for start, length, record in self._records(self._file, at, limit):
                    if lost:
                        yield f"{self._path}:{lost[0]}", RecordError("", f"it, or what follows, is damaged: {lost[1]}")
                    if last:
                        yield f"{self._path}:{at}", last
                    at, size, last, attempts, lost = start, length, record, 1, None
                if not attempts:
                    raise FileError(self._path, "is no web archive, WARC or ARC")
                if last and len(last.data) < min(size, limit):
                    raise OSError(f"{len(last.data):,} of {size:,} bytes are there")
                if last:
                    yield f"{self._path}:{at}", last
                if self._cut_off(at, size):
                    raise OSError("it is cut off, or what follows it is")
                break
            except OSError as error:
                if not _is_damage(error):
                    raise
                if last and self._magic == GZIP and "decompression" in str(error):  # of another member
                    yield f"{self._path}:{at}", last
                lost = lost or (at, error)
            found = self._next(at + 1) if attempts <= ATTEMPTS else None
            if found is None:
                raise FileError(self._path, f"cannot be read from the record at byte {lost[0]} on: {lost[1]}")
            at, size, attempts = found, 0, attempts + 1

    def at(self, offset: int) -> Record | None:
        """The record at an offset; None if it cannot be read."""
        try:
            return next(self._records(self._again, offset, MAX_SIZE))[2]
        except StopIteration:
            return None
        except OSError as error:
            if not _is_damage(error):
                raise
            return None

    def _records(self, file: BinaryIO, at: int, limit: int) -> Iterator[tuple[int, int, Record | None]]:
        """From a place on, where each record begins, its size, and the record if it may be a page or a picture.

        Raises:
          OSError: without a number, if the file is damaged.
        """
        file.seek(at)
        yield from _arc_records(file, limit) if self._arc else _warc_records(file, limit)

    def _cut_off(self, at: int, size: int) -> bool:
        """Whether the last record has no end, or something follows it: FastWARC takes half a header for the end."""
        self._file.seek(at)
        if self._arc:
            return self._next(at + size) is not None
        if self._magic != GZIP:
            header = self._file.read(MAX_HEADER).find(b"\r\n\r\n")
            end = at + header + 4 + size
            return header < 0 or end > self._file.seek(0, io.SEEK_END) or self._next(end) is not None
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            while not member.eof and (block := self._file.read(SMALL_BLOCK)):
                member.decompress(block)
        except zlib.error:
            return True
        return not member.eof or bool(member.unused_data or self._file.read(1))

    def _next(self, at: int) -> int | None:
        """Where the next record may begin, from a place on."""
        begins = GZIP if self._magic == GZIP else b"\nhttp" if self._arc else b"WARC/1."
        self._file.seek(at)
        kept = b""
        while block := self._file.read(BLOCK):
            found = (kept + block).find(begins)
            if found >= 0:
                return at - len(kept) + found + self._arc
            at += len(block)
            kept = (kept + block)[1 - len(begins) :]
        return None


def _warc_records(file: BinaryIO, limit: int) -> Iterator[tuple[int, int, Record | None]]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    wanted, before = (WarcRecordType.response, WarcRecordType.resource), None
    for record in ArchiveIterator(file, parse_http=False):
        if "WARC-Type" not in record.headers or "Content-Length" not in record.headers:
            raise OSError(f"no header of a record at byte {record.stream_pos}")
        if record.record_type not in wanted:
            before = record.stream_pos
            yield before, record.content_length, None
            continue
        mime = "" if record.is_http else record.headers.get("Content-Type", "")
        url = record.headers.get("WARC-Target-URI", "").strip("<>")  # wget puts it in brackets
        size = record.content_length
        data = record.reader.read(min(size, limit))
        offset = None if record.stream_pos == before else record.stream_pos
        before = record.stream_pos
        yield before, size, Record(offset, url, mime, data, size)


def _arc_records(file: BinaryIO, limit: int) -> Iterator[tuple[int, int, Record | None]]:
    at = file.tell()
    while line := file.readline(MAX_HEADER):
        if line.startswith(b"filedesc:"):  # the file's own header has a length too, which many have wrong
            while line.strip():
                line = file.readline(MAX_HEADER)
            yield at, 0, None
        elif line.strip():
            header = ARC_HEADER.fullmatch(line)
            if not header:
                raise OSError(f"no header of a record at byte {at}")
            url, mime, size = header[1].decode(errors="replace"), header[2].decode(errors="replace"), int(header[3])
            start = file.tell()
            data = file.read(min(size, limit))
            file.seek(start + size)
            yield at, size, Record(at, url, "" if url.startswith("http") else mime, data, size)
        at = file.tell()


def _is_damage(error: OSError) -> bool:
    """Whether it is FastWARC's, and not the disk's or the network's."""
    return type(error) is OSError and error.errno is None


@contextlib.contextmanager
def opened_archive(path: str) -> Iterator[Archive]:
    """An archive, plain or compressed by gzip or Zstandard; it goes through a temporary file if it is not so by record.

    Raises:
      FileError: at the end, of one in which compression is damaged.
    """
    with contextlib.ExitStack() as files:
        file, damage = files.enter_context(opened(path)), None
        if not _by_record(file):
            plain = files.enter_context(tempfile.NamedTemporaryFile())
            file.seek(0)
            damage = _unpack(file, plain)
            plain.flush()
            file, place = plain, plain.name
        else:
            place = path
        file.seek(0)
        yield Archive(path, file, files.enter_context(opened(place)))
    if damage:
        raise FileError(path, f"cannot be read to its end: {damage}")


def _by_record(file: BinaryIO) -> bool:
    """Whether records can be found again by offset: it is plain, or the second one is in a member of its own."""
    from fastwarc.warc import ArchiveIterator

    magic = file.read(4)
    if not magic.startswith((GZIP, ZSTD)):
        return True
    if magic.startswith(ZSTD):  # members may want the dictionary that stands in front
        return False
    file.seek(0)
    records = ArchiveIterator(file, parse_http=False)
    try:
        next(records)
        file.seek(next(records).stream_pos)
        return file.read(len(GZIP)) == GZIP
    except StopIteration:
        return True
    except OSError as error:
        if not _is_damage(error):
            raise
        return not _begins_arc(file)


def _begins_arc(file: BinaryIO) -> bool:
    from fastwarc.stream_io import GzipReader

    file.seek(0)
    try:
        return GzipReader(file).read(9) == b"filedesc:"
    except OSError as error:
        if not _is_damage(error):
            raise
        return False


def _unpack(packed: BinaryIO, plain: BinaryIO) -> Exception | None:
    """Writes what is in a compressed file into another; returns what cut that off."""
    from fastwarc.stream_io import ZstdReader

    is_gzip = packed.read(len(GZIP)) == GZIP
    packed.seek(0)
    # FastWARC takes a gzip file that is cut off for one that ends; Python does not read Zstandard's dictionaries.
    reader = gzip.GzipFile(fileobj=packed) if is_gzip else ZstdReader(packed)
    try:
        while block := reader.read(SMALL_BLOCK):
            plain.write(block)
    except damages() as error:
        return error
    except OSError as error:
        if not _is_damage(error):
            raise
        return error
    return None


def mime(record: Record) -> str | None:
    """The type of what a record answers with; None if that is no success. The beginning of the record is enough."""
    if record.mime:
        return _mime(record.mime)
    try:
        answer = _parsed(record, "none")
    except OSError:
        return None
    return (answer.http_content_type or "").lower() if answer.http_headers.status_code == 200 else None


def response(record: Record) -> Response | None:
    """What a record answers with; None if that is no success.

    Raises:
      RecordError: it cannot be decoded, or is larger than `MAX_SIZE`. It has no name of the record yet.
    """
    if record.size > MAX_SIZE:
        raise RecordError("", f"{record.url} has {record.size:,} bytes; {MAX_SIZE:,} are read")
    if record.mime:
        charset = re.search(r"charset=([^\s;]+)", record.mime)
        return Response(_mime(record.mime), charset and charset[1], record.data)
    for decode in "all", "transfer", "none":
        try:
            answer = _parsed(record, decode)
            status = answer.http_headers.status_code
            if status is None:
                raise RecordError("", f"{record.url} has no status of HTTP")
            if status != 200:
                return None
            data = answer.reader.read(MAX_SIZE)
        except OSError as error:
            damage = error
            continue
        if len(data) == MAX_SIZE:
            raise RecordError("", f"{record.url} has {MAX_SIZE:,} bytes or more when it is decompressed")
        # Tools that decode what they store may leave the header that says how.
        if decode == "all" or data.lstrip().startswith(UNPACKED):
            return Response((answer.http_content_type or "").lower(), answer.http_charset, data)
    raise RecordError("", f"{record.url} cannot be decoded: {damage}")


def _mime(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _parsed(record: Record, decode: str):
    """FastWARC's record of an HTTP response."""
    from fastwarc.warc import WarcRecord

    answer = WarcRecord()
    answer.set_bytes_content(record.data)
    answer.is_http = True
    answer.parse_http(auto_decode=decode)
    return answer
