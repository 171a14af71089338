"""Readers: each goes front to back through one format in which corpora are published. One name of a kind, one class.

A reader is made of the split and, by name, the keys of its kind: `Jsonl("train", splits=..., template=...)`. Its shards
are read once each, in any order and by several processes; what comes of a shard is always the same, in the same order.
`docs/data.md` adds one.
"""

import hashlib
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from data_pipeline.documents import DataError, Document, RecordError

SPLITS = ("train", "validation", "test")
# Module and class, imported when the kind is used; another kind adds its own entry, a class or where it is.
KINDS = {
    "pydoc": "data_pipeline.builtin:Pydoc",
    "digits": "data_pipeline.builtin:Captions",
    "digit_documents": "data_pipeline.builtin:DigitDocuments",
    "spoken_digits": "data_pipeline.spoken:SpokenDigits",
    "spoken_documents": "data_pipeline.spoken:SpokenDocuments",
    "tfds": "data_pipeline.readers.tfds:Tfds",
    "tfrecord": "data_pipeline.readers.tfrecord:TfRecord",
    "array_record": "data_pipeline.readers.array_record:ArrayRecord",
    "parquet": "data_pipeline.readers.parquet:Parquet",
    "obelics": "data_pipeline.readers.obelics:Obelics",
    "jsonl": "data_pipeline.readers.jsonl:Jsonl",
    "tar": "data_pipeline.readers.tar:Tar",
    "pairs": "data_pipeline.readers.pairs:Pairs",
    "table": "data_pipeline.readers.table:Table",
    "coco": "data_pipeline.readers.coco:Coco",
    "labels": "data_pipeline.readers.labels:Labels",
    "text": "data_pipeline.readers.text:PlainText",
    "mmc4": "data_pipeline.readers.mmc4:Mmc4",
    "parts": "data_pipeline.readers.parts:Parts",
    "warc": "data_pipeline.readers.warc:Warc",
    "html": "data_pipeline.readers.html:Html",
}


class Reader(Protocol):
    """A corpus, or one split of it.

    Attributes:
      fingerprint: changes when what is read would: with the files, or the version of what is built in. The keys that
        the reader was made of are not in it.
      size: bytes on disk or in a bucket; 0 of what is built in.
    """

    fingerprint: str
    size: int

    def shards(self) -> Sequence[str]:
        """The parts of the corpus, in a fixed order; usually files, by address."""
        ...

    def read(self, shard: str) -> Iterator[Document | RecordError]:
        """The documents of a part in order; in place of one that cannot be read, what is wrong with it.

        Raises:
          OSError: a disk or the network still fails after `retries.WAITS`.
          DataError: nothing can be read until the user changes something: a column that is nowhere, a library that is
            not installed.
        """
        ...


def keys(kind: str) -> dict[str, bool]:
    """The keys that a kind has of its own, and whether each has to be given.

    Raises:
      DataError: `KINDS` has no such kind.
    """
    _, *parameters = inspect.signature(_class(kind)).parameters.values()
    return {parameter.name: parameter.default is parameter.empty for parameter in parameters}


def make_reader(config: Any, split: str) -> Reader:
    """The reader that `config.kind` names.

    Args:
      config: one entry of `config.data.sources`; the keys of each kind are documented at its class.
      split: "train", "validation" or "test".

    Raises:
      DataError: the split or the kind is unknown, or a key that the kind needs is missing.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is none of {', '.join(SPLITS)}")
    known = keys(config.kind)
    if missing := [key for key, needed in known.items() if needed and key not in config]:
        raise DataError(f"a source of kind {config.kind} needs {', '.join(missing)}")
    return _class(config.kind)(split, **{key: config[key] for key in known if key in config})


def fingerprint(config: Any, split: str, reader: Reader) -> str:
    """Changes with the reader's files and with the keys that it was made of."""
    own = {name: str(config[name]) for name in keys(config.kind) if name in config}
    return digest(config.kind, split, sorted(own.items()), reader.fingerprint)


class Listed:
    """Base class of readers that have their documents by number: `len(self)` and `self[i]`, in one shard."""

    size = 0

    def shards(self) -> Sequence[str]:
        return ("all",)

    def read(self, shard: str) -> Iterator[Document | RecordError]:
        """See `Reader.read`."""
        for i in range(len(self)):
            try:
                yield self[i]
            except RecordError as error:
                yield error


def _class(kind: str) -> type:
    if kind not in KINDS:
        raise DataError(f"data.sources.*.kind {kind!r} is none of {', '.join(KINDS)}")
    found = KINDS[kind]
    if isinstance(found, str):
        module, name = found.split(":")
        found = getattr(importlib.import_module(module), name)
    return found


def digest(*parts) -> str:
    """A fingerprint of values that Python writes in full: numbers, texts, bytes, and tuples and lists of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
