"""Files by address, on a disk or in a bucket: found by pattern, opened, decompressed.

fsspec reads all of them: `gs://` needs kosmos_jax[gs], `s3://` kosmos_jax[s3]; both find credentials, and the address
of another server (STORAGE_EMULATOR_HOST, AWS_ENDPOINT_URL), as Google's and Amazon's own tools do.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from data_pipeline.documents import DataError

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expanded(pattern: str) -> list[str]:
    """Numbers in braces written out, as img2dataset's and webdataset's users do: "{00..02}.tar" is three files."""
    match = RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    numbers = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    return [each for n in numbers for each in expanded(pattern[: match.start()] + n + pattern[match.end() :])]


def file_system(address: str):
    """(fsspec's file system of an address, the path in it).

    Raises:
      DataError: a library is needed that is not installed.
    """
    import fsspec

    try:
        return fsspec.url_to_fs(address)
    except ImportError as error:
        extra = {"gs": "gs", "gcs": "gs", "s3": "s3"}.get(address.split("://")[0])
        hint = f"pip install 'kosmos_jax[{extra}]'" if extra else str(error)
        raise DataError(f"{address}: {hint}") from error
    except ValueError as error:  # of an unknown protocol
        raise DataError(f"{address}: {error}") from error


def found(pattern: str) -> dict[str, int]:
    """The files that a pattern ("~/pile/*.jsonl.zst", "gs://bucket/{00..99}.tar") names, in order, with their sizes.

    Raises:
      DataError: there is none.
    """
    sizes = {}
    for part in expanded(pattern):
        system, path = file_system(part)
        try:
            names = system.glob(path, detail=True) if any(c in path for c in "*?[") else {path: system.info(path)}
        except FileNotFoundError:
            names = {}
        files = {name: info["size"] for name, info in sorted(names.items()) if info["type"] == "file"}
        if not files:
            raise DataError(f"{part}: there is no such file")
        sizes |= {name if is_local(part) else system.unstrip_protocol(name): size for name, size in files.items()}
    return sizes


def is_local(address: str) -> bool:
    return "://" not in address


def opened(address: str) -> BinaryIO:
    """A file for reading bytes, from any place."""
    if is_local(address):
        return open(address, "rb")
    system, path = file_system(address)
    return system.open(path, "rb")


@contextlib.contextmanager
def decompressed(address: str) -> Iterator[BinaryIO]:
    """The bytes of a file of text or JSON, which may end in one of `COMPRESSIONS`."""
    with opened(address) as file:
        # Lines are asked for one by one; without a buffer each would go through the decompressor's Python code.
        yield io.BufferedReader(_decompressor(address)(file), 1 << 16)


def _decompressor(address: str) -> Callable[[BinaryIO], BinaryIO]:
    if address.endswith(".gz"):
        return lambda file: gzip.GzipFile(fileobj=file)
    if address.endswith(".xz"):
        return lzma.LZMAFile
    if address.endswith(".bz2"):
        return _Bz2File
    if address.endswith(".zst"):
        from backports import zstd

        # The windows of "zstd --long=31" have to be allowed; dumps of Reddit have them.
        return partial(zstd.ZstdFile, options={zstd.DecompressionParameter.window_log_max: 31})
    return lambda file: file


class _Bz2File(bz2.BZ2File):
    """Damage is a ValueError; bz2 has an OSError without a number for it, which would be taken for the disk's."""

    def read(self, size=-1):
        return self._undamaged(super().read, size)

    def readinto(self, buffer):
        return self._undamaged(super().readinto, buffer)

    def _undamaged(self, read, argument):
        try:
            return read(argument)
        except OSError as error:
            if error.errno is not None:
                raise
            raise ValueError(str(error)) from error


def stem(address: str) -> str:
    """The last part of an address without compression and suffix: "c4.00017" of "gs://b/c4.00017.json.gz"."""
    name = address.rsplit("/", 1)[-1]
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name.rsplit(".", 1)[0]


def damages() -> tuple[type[Exception], ...]:
    """What a damaged file raises while it is decompressed or parsed; errors of disks and networks are none of these."""
    from backports import zstd

    return (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError, ValueError)
