"""Pictures in zips, found by name and read without opening the zip again.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

from data_pipeline.documents import DataError, Place
from data_pipeline.files import opened

LOCAL_HEADER = struct.Struct("<4s22xHH")


class Member(NamedTuple):
    address: str
    offset: int
    packed: int
    size: int
    method: int


def opened_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The standard library's reader of a zip.

    Raises:
      ValueError: it is none, or damaged in its directory.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(str(error)) from error
    end = file.seek(0, io.SEEK_END)
    if any(not 0 <= info.header_offset < end for info in archive.infolist()):
        raise ValueError("its directory names places outside of it")
    return archive


def members(addresses: Iterable[str]) -> dict[str, Member]:
    """The files in zips by the last part of their names; of those with one name, the first.

    Raises:
      DataError: one is no zip.
    """
    found = {}
    for address in addresses:
        try:
            with opened(address) as file, opened_zip(file) as archive:
                for info in archive.infolist():
                    name = info.filename.rsplit("/", 1)[-1]
                    member = Member(address, info.header_offset, info.compress_size, info.file_size, info.compress_type)
                    found.setdefault(name, member)
        except ValueError as error:
            raise DataError(f"{address} is no zip that can be read ({error}); repair it, or leave it out") from error
    return found


def read(member: Member) -> tuple[bytes, Place | None] | None:
    """The bytes of a member, and where they lie if they are not compressed; None if it is damaged."""
    with opened(member.address) as file:
        file.seek(member.offset)
        header = file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size:
            return None
        magic, name, extra = LOCAL_HEADER.unpack(header)
        start = member.offset + LOCAL_HEADER.size + name + extra
        file.seek(start)
        data = file.read(member.packed)
    if magic != b"PK\3\4" or len(data) < member.packed:
        return None
    if member.method == zipfile.ZIP_STORED:
        return data, Place(member.address, start, len(data))
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size) if member.size else b""
    except zlib.error:  # it is damaged, encrypted or packed in another way
        return None
    return (data, None) if len(data) == member.size else None
