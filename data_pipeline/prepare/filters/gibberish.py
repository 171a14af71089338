"""Text that is not sentences, by what can be counted in it."""

import collections
import dataclasses
import functools
import math
import re
import string
import sys
from typing import ClassVar

import numpy as np

from data_pipeline.documents import Document, Media
from data_pipeline.prepare.filters.base import Rejection, text_of

SYMBOLS = re.compile(r"https?://\S+|www\.\S+|#\w+|\.\.\.|…|[\U0001F300-\U0001FAFF\u2600-\u27BF]")
# Lengths over which OBELICS looks for repetition.
CHARACTERS, WORDS = 10, 5
# An odd number: the golden ratio in 64 bits.
MULTIPLIER = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True)
class Gibberish:
    """Text that is not sentences: repetition and special characters as OBELICS measures them, and with the limits that
    it has for paragraphs (arXiv 2306.16527, table 2; huggingface/OBELICS, web_document_filtering.py), lengths of words
    and symbols as Gopher does (arXiv 2112.11446, appendix A.1.1).

    Args:
      special: share of characters that are no letters: digits, punctuation and spaces too.
      characters: share of ten characters in a row that come most often: of N different ones the sqrt(N) most frequent
        are counted, as far as they come twice.
      words: share of five words in a row that come more than once.
      word_length: least and most letters of a word, on average.
      symbols: addresses, hashtags, emoji and ellipses to a word.
    """

    special: float = 0.3
    characters: float = 0.1
    words: float = 0.1
    word_length: tuple[float, float] = (3, 10)
    symbols: float = 0.1
    name: ClassVar[str] = "gibberish"

    def apply(self, document: Document) -> Document | Rejection:
        text = text_of(document)
        pieces = text.split()
        if not pieces:
            return document if any(isinstance(part, Media) for part in document.parts) else Rejection("no words")
        words = [word for piece in pieces if (word := piece.strip(string.punctuation).lower())]
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        least, most = self.word_length
        for what, value, low, high in (
            ("special characters", 1 - float(_letters()[codes].mean()), 0, self.special),
            ("symbols per word", len(SYMBOLS.findall(text)) / len(pieces), 0, self.symbols),
            ("letters per word", sum(map(len, words)) / max(1, len(words)), least, most),
            ("repeated words", repeated_words(words), 0, self.words),
            ("repeated characters", repeated_characters(codes), 0, self.characters),
        ):
            if not low <= value <= high:
                return Rejection(f"{what}: {value:.2f}")
        return document


@functools.cache
def _letters() -> np.ndarray:
    """bool[code points], which of them are letters."""
    return np.array([chr(code).isalpha() for code in range(sys.maxunicode + 1)])


def repeated_words(words: list[str]) -> float:
    """Share of those five in a row that come more than once."""
    counts = collections.Counter(zip(*(words[n:] for n in range(WORDS)), strict=False))
    return sum(count for count in counts.values() if count > 1) / max(1, counts.total())


def repeated_characters(codes: np.ndarray) -> float:
    """Share of the sqrt(N) most frequent ten in a row of N, as far as they come twice."""
    if len(codes) < CHARACTERS:
        return 0.0
    # By 64-bit hashes, since a dictionary of slices takes longer than the tokenizer does.
    hashes = np.zeros(len(codes) - CHARACTERS + 1, np.uint64)
    for n in range(CHARACTERS):
        hashes = hashes * np.uint64(MULTIPLIER) + codes[n : n + len(hashes)]
    counts = np.unique(hashes, return_counts=True)[1]
    most = np.sort(counts[counts > 1])[::-1][: math.isqrt(len(counts))]
    return float(most.sum() / len(hashes))
