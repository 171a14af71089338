"""Documents that hold examples of the sets that a model is evaluated on."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from data_pipeline.documents import DataError, Document
from data_pipeline.files import COMPRESSIONS, decompressed, found
from data_pipeline.prepare.filters.base import Rejection, text_of
from data_pipeline.prepare.filters.gibberish import MULTIPLIER
from data_pipeline.readers import digest

WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Decontaminated:
    """Without documents that share so many words in a row with an evaluation set (GPT-3, arXiv 2005.14165, appendix C).

    Args:
      sets: patterns of files, see `files.found`: text, a line an example, or `.json` and `.jsonl`, of whose objects all
        texts count. Each may be compressed.
      n: words, without their punctuation and in small letters. An example that has fewer is not looked for.

    Attributes:
      fingerprint: changes with the files.
    """

    sets: tuple[str, ...]
    n: int = 13
    name: ClassVar[str] = "decontaminated"

    @property
    def fingerprint(self) -> str:
        return digest(len(_known(self.sets, self.n)), _known(self.sets, self.n).tobytes())

    def apply(self, document: Document) -> Document | Rejection:
        known, hashes = _known(self.sets, self.n), ngram_hashes(text_of(document), self.n)
        if not len(known) or not len(hashes):
            return document
        at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        if not (known[at] == hashes).any():
            return document
        first = int(np.argmax(known[at] == hashes))
        return Rejection(" ".join(WORD.findall(text_of(document).lower())[first : first + self.n]))


@functools.cache
def _known(sets: tuple[str, ...], n: int) -> np.ndarray:
    """uint64[], the hashes of the sets, rising."""
    texts = (text for pattern in sets for path in found(pattern) for text in _texts(path))
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(ngram_hashes(text, n) for text in texts)]))


def _texts(path: str) -> Iterator[str]:
    import orjson

    name = path
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    with decompressed(path) as file:
        try:
            if name.endswith(".json"):
                yield from _strings(orjson.loads(file.read()))
            for line in file:
                yield from _strings(orjson.loads(line)) if name.endswith(".jsonl") else [line.decode()]
        except ValueError as error:
            raise DataError(
                f"evaluation set {path}: {error}; it is text in UTF-8, or JSON in .json and .jsonl"
            ) from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """uint64[], a hash of every n words in a row."""
    words = np.array([zlib.crc32(word.encode()) for word in WORD.findall(text.lower())], np.uint64)
    hashes = np.zeros(max(0, len(words) - n + 1), np.uint64)
    for k in range(n):
        hashes = hashes * np.uint64(MULTIPLIER) + words[k : k + len(hashes)]
    return hashes
