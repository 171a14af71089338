"""Sources: an index goes in, a document comes out. One name of a kind, one class."""

from typing import Any, Protocol

from data_pipeline.documents import DataError, Document

SPLITS = ("train", "validation", "test")
KINDS = {"pydoc":0, "digits":0, "digit_documents":0, "tfds":0}
COMMON_KEYS=("kind","share","per_row","augment")
def keys(kind): return () if kind!="tfds" else ("name", "data_dir", "splits", "template", "interleaved")


class Source(Protocol):
    """A finite collection of documents with random access, safe to read from several threads.

    Attributes:
      fingerprint: changes whenever a document or their order does; indexes and plans are kept under it.

    `source[i]` raises `RecordError` for a record that cannot be read; whoever reads skips and counts it.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Document: ...


def make_source(config: Any, split: str) -> Source:
    """The source that `config.kind` names.

    Args:
      config: one entry of `config.data.sources`; the keys besides `kind`, `share`, `images_per_row` and `augment` are
        the kind's own and documented at its class.
      split: "train", "validation" or "test".
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if config.kind == "tfds":
        from data_pipeline.tfds_source import TfdsSource

        return TfdsSource(config, split)
    from data_pipeline import builtin

    kinds = {"pydoc": builtin.Pydoc, "digits": builtin.Captions, "digit_documents": builtin.DigitDocuments}
    if config.kind not in kinds:
        raise DataError(f"data.sources.*.kind {config.kind!r} is none of {', '.join(KINDS)}")
    return kinds[config.kind](split)
