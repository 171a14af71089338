"""What a filter is, and what filters ask of documents."""

from typing import ClassVar, NamedTuple, Protocol

from data_pipeline.documents import Document, Media, Text


class Rejection(NamedTuple):
    """Why a document is left out."""

    why: str


class Filter(Protocol):
    """A frozen dataclass; what it does depends on the document alone, so that a shard is always prepared the same.

    Attributes:
      name: for reports.
    """

    name: ClassVar[str]

    def apply(self, document: Document) -> Document | Rejection:
        """The document itself, another one with less in it, or why there is none."""
        ...


def text_of(document: Document) -> str:
    """All its text."""
    return "\n".join(part.text for part in document.parts if isinstance(part, Text))


def image_places(document: Document) -> list[int]:
    """Which of its parts are images."""
    return [n for n, part in enumerate(document.parts) if isinstance(part, Media) and part.kind == "image"]
