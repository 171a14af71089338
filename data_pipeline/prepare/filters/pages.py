"""Filters of interleaved pages: how many images, and how much text around them."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import ClassVar

from data_pipeline.documents import Document, Text
from data_pipeline.prepare.filters.base import Rejection, image_places
from data_pipeline.tokenizer import SENTENCE_END

ENDS = re.compile(f"{SENTENCE_END.pattern}|\n")


@dataclasses.dataclass(frozen=True)
class MostImages:
    """The first images of a document, and the text up to the next one."""

    most: int = 5
    name: ClassVar[str] = "most_images"

    def apply(self, document: Document) -> Document:
        places = image_places(document)
        if len(places) <= self.most:
            return document
        return Document(document.parts[: places[self.most]], document.where)


@dataclasses.dataclass(frozen=True)
class FewerSingles:
    """A share of the documents with one image is left out, by the hash of their names."""

    share: float = 0.5
    name: ClassVar[str] = "fewer_singles"

    def apply(self, document: Document) -> Document | Rejection:
        if len(image_places(document)) != 1:
            return document
        # Not the hash that splits are made by, or those of a small validation split would go, or stay, together.
        name = document.where.rsplit("/", 1)[-1].encode(errors="surrogateescape")
        number = int.from_bytes(hashlib.blake2b(name, digest_size=4, person=b"singles").digest())
        return Rejection("one image") if number < self.share * 2**32 else document


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Of the text before the first image and after the last one some sentences are kept, those next to the image.

    Kosmos-G does so (xichenpan/Kosmos-G, wild_loader.py). A line ends a sentence too.
    """

    sentences: int = 3
    name: ClassVar[str] = "surroundings"

    def apply(self, document: Document) -> Document:
        places = image_places(document)
        if not places:
            return document
        parts = document.parts
        inner = parts[places[0] : places[-1] + 1]
        kept = (*self._last(parts[: places[0]]), *inner, *self._first(parts[places[-1] + 1 :]))
        return document if kept == parts else Document(kept, document.where)

    def _first(self, parts: Sequence) -> list:
        kept, left = [], self.sentences
        for part in parts:
            if not left:
                break
            if isinstance(part, Text):
                ends = sentence_ends(part.text)
                if len(ends) > left:
                    part = part._replace(text=part.text[: ends[left - 1]].rstrip())
                left -= min(left, len(ends))
            kept.append(part)
        return kept

    def _last(self, parts: Sequence) -> list:
        kept, left = [], self.sentences
        for part in reversed(parts):
            if not left:
                break
            if isinstance(part, Text):
                ends = sentence_ends(part.text)
                if len(ends) > left:
                    part = part._replace(text=part.text[ends[-left - 1] :].lstrip())
                left -= min(left, len(ends))
            kept.append(part)
        return kept[::-1]


def sentence_ends(text: str) -> list[int]:
    """Where its sentences end, none of which is blank; the last one ends with the text."""
    ends, start = [], 0
    for match in ENDS.finditer(text):
        if text[start : match.end()].strip():
            ends.append(match.end())
        start = match.end()
    if text[start:].strip():
        return [*ends, len(text)]
    return [*ends[:-1], len(text)] if ends else []
