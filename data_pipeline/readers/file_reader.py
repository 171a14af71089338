"""What the readers of files have in common: which files a split has, and what becomes of a damaged one."""

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.documents import DataError, Document, FileError, Media, Place, RecordError
from data_pipeline.files import damages, found, opened
from data_pipeline.media import MEDIA
from data_pipeline.readers import digest
from data_pipeline.retries import retried
from data_pipeline.template import Template, unknown

# Errors that a second attempt would meet again.
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

# Bytes of a file's name; a longer one is an error of the system and not that there is none.
LONGEST = 255

PERCENT = re.compile(r"\[([\d.]*)%?:([\d.]*)%?\]$")


class FileReader:
    """Base class: every file that the split's pattern names is a shard. A format has `documents(path)`.

    `splits` has a pattern for each split, or several patterns in a tuple. In brackets after it can stand a share of the
    documents, chosen by the hash of their names, where a corpus has no splits of its own:

        splits=dict(train="~/pile/*.jsonl.zst", validation="~/pile/val.jsonl.zst")
        splits=dict(train="pages/*.warc.gz[2%:]", validation="pages/*.warc.gz[:2%]")
    """

    def __init__(self, split: str, splits: dict[str, str | Sequence[str]]):
        """Raises: DataError: no pattern for the split, or no file of that name."""
        if split not in splits:
            raise DataError(f"splits names no {split!r}, only {', '.join(splits)}")
        patterns = [splits[split]] if isinstance(splits[split], str) else splits[split]
        self._shares, sizes = {}, {}
        for pattern in patterns:
            match = PERCENT.search(pattern)
            share = (float(match[1] or 0), float(match[2] or 100)) if match else (0.0, 100.0)
            files = found(pattern[: match.start()] if match else pattern)
            sizes |= files
            self._shares |= dict.fromkeys(files, share)
        self._files, self.size = tuple(sizes), sum(sizes.values())
        self.fingerprint = digest([(name.rsplit("/", 1)[-1], size) for name, size in sizes.items()], self._shares)

    def shards(self) -> Sequence[str]:
        return self._files

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        """The documents of one file. A `RecordError` that is raised, or one of `files.damages()`, ends the file."""
        raise NotImplementedError

    def read(self, shard: str) -> Iterator[Document | RecordError]:
        """See `Reader.read`; a file that is cut off or damaged gives what stands before the damage, and a FileError."""
        low, high = self._shares[shard]
        try:
            for document in self.documents(shard):
                if low <= name_percent(document.where) < high:
                    yield document
        except RecordError as error:
            yield error
        except damages() as error:
            if isinstance(error, DataError):
                raise
            yield FileError(shard, f"cannot be read to its end ({type(error).__name__}: {error})")


class RecordReader(FileReader):
    """Base class for formats whose records have fields, which a template makes a document of.

    A format has `records(path)`, and, where a field of media is no name of a file, its own `media`.
    """

    def __init__(self, split: str, splits: dict[str, str], template: str, learned: Sequence[str] = ()):
        """Args: template, learned: see `Template`. A field "meta.title" is the field title of the field meta."""
        super().__init__(split, splits)
        self._template = Template(template, learned, self.kind_of)

    def kind_of(self, field: str, spec: str) -> str:
        """The modality of a field of the template, "" for text; see `Template`."""
        if spec and spec not in MEDIA:
            raise DataError(f"in {{{field}:{spec}}}, {unknown(spec, list(MEDIA))}")
        return spec

    def records(self, path: str) -> Iterator[tuple[str, Mapping[str, Any] | RecordError]]:
        """The name of each record of a file for messages, "train.jsonl:17", and its fields or what is wrong with it."""
        raise NotImplementedError

    def media(self, path: str, field: str, kind: str, value: Any) -> bytes | Media:
        """The item that a field of the file at `path` holds; here its value names a file beside."""
        if not isinstance(value, str):
            raise RecordError("", f"its {field} is {_shown(value)}, no name of a file")
        return Media(kind, *beside(path, value, field))

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        for where, record in self.records(path):
            try:
                if isinstance(record, RecordError):
                    raise record
                yield Document(tuple(self._template.parts(self._values(path, record))), where)
            except RecordError as error:
                yield type(error)(where, error.why) if type(error) in (RecordError, FileError) else error

    def _values(self, path: str, record: Mapping[str, Any]) -> Callable[[str, str], str | bytes | Media]:
        def value(field: str, kind: str) -> str | bytes | Media:
            found = record
            for name in [field] if field in record else field.split("."):
                if not isinstance(found, Mapping) or name not in found:
                    raise RecordError("", unknown(field, list(record)))
                found = found[name]
            if kind:
                return self.media(path, field, kind, found)
            if isinstance(found, int | float) and not isinstance(found, bool):
                return str(found)
            if isinstance(found, bytes):
                try:
                    return found.decode()
                except UnicodeDecodeError as error:
                    raise RecordError("", f"its {field} is no UTF-8: {error}") from error
            if not isinstance(found, str):
                raise RecordError("", f"its {field} is {_shown(found)}, no text")
            return found

        return value


def beside(path: str, name: str, field: str = "file") -> tuple[bytes, Place]:
    """The bytes of a file that a file at `path` names, and their place; it lies in the same folder or below.

    Raises:
      RecordError: without the record's name; there is no such file, or the name leads out of the folder.
    """
    folder = posixpath.dirname(path)
    inner = posixpath.normpath(name)
    outside = not name or "://" in name or "\0" in name or posixpath.isabs(inner) or inner.split("/")[0] in ("..", ".")
    if outside or any(len(part.encode(errors="replace")) > LONGEST for part in inner.split("/")):
        raise RecordError("", f"its {field} {name!r} is no file in the folder")
    address = f"{folder}/{inner}" if folder else inner

    def read() -> bytes:
        with opened(address) as file:
            return file.read()

    try:
        data = retried(read, address, final=MISSING)
    except (*MISSING, ValueError) as error:  # ValueError: a name that no file can have
        raise RecordError("", f"its {field} {name!r} is no file in the folder") from error
    return data, Place(address, 0, len(data))


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)[:40]


def name_percent(where: str) -> float:
    """0 to 100 by the hash of a name, without the folders that the corpus lies in."""
    name = where.rsplit("/", 1)[-1].encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest()) * 100 / 2**32
