"""Sources: an index goes in, a document comes out. One name of a kind, one class."""

import hashlib
import importlib
import inspect
from typing import Any, Protocol

from data_pipeline.documents import DataError, Document

SPLITS = ("train", "validation", "test")
# Module and class, imported when the kind is used; another kind adds its own entry, a class or where it is.
KINDS = {
    "pydoc": "data_pipeline.builtin:Pydoc",
    "digits": "data_pipeline.builtin:Captions",
    "digit_documents": "data_pipeline.builtin:DigitDocuments",
    "spoken_digits": "data_pipeline.spoken:SpokenDigits",
    "spoken_documents": "data_pipeline.spoken:SpokenDocuments",
    "folder": "data_pipeline.folder:FolderSource",
    "tfds": "data_pipeline.tfds_source:TfdsSource",
}
# The keys that an entry of `config.data.sources` may have whatever its kind; see `keys` for the kind's own.
COMMON_KEYS = ("kind", "share", "per_row", "augment")


class Source(Protocol):
    """A finite collection of documents with random access, safe to read from several threads.

    It is made of the split and, by name, the keys of the config that its kind has: `TfdsSource(split, name=..., ...)`.

    Attributes:
      fingerprint: changes whenever a document or their order does; indexes and plans are cached under it.

    `source[i]` raises `RecordError` for a record that cannot be read; whoever reads skips and counts it.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Document: ...


def keys(kind: str) -> dict[str, bool]:
    """The keys that a kind has of its own, and whether each has to be given.

    Raises:
      DataError: `KINDS` has no such kind.
    """
    _, *parameters = inspect.signature(_class(kind)).parameters.values()
    return {parameter.name: parameter.default is parameter.empty for parameter in parameters}


def make_source(config: Any, split: str) -> Source:
    """The source that `config.kind` names.

    Args:
      config: one entry of `config.data.sources`; the keys besides `COMMON_KEYS` are documented at the kind's class.
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
