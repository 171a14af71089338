"""Real data that needs no download: prose that ships inside Python, handwriting that ships inside scikit-learn.

The wording of captions and interleaved documents is fixed here, and the evaluation builds its prompts from the same
words, so that an answer is right or wrong by its first word.
"""

import functools
import hashlib
import io
import re

import numpy as np
from PIL import Image

from data_pipeline.documents import Document, Media, Text
from data_pipeline.readers import Listed, digest
from data_pipeline.shuffle import philox

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
CAPTION_PROMPT = "The digit is"
CAPTIONS = (CAPTION_PROMPT + " {}.", "This is the number {}.", "A handwritten {}.")
LABELS = {
    "word": lambda digit: WORDS[digit],
    "numeral": str,
    "parity": lambda digit: "odd" if digit % 2 else "even",
}
DOCUMENTS = {"train": 20_000, "validation": 1_000, "test": 1_000}
SPLIT_IMAGES = {"train": 1297, "validation": 200, "test": 300}


@functools.cache
def digits(split: str) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """PNG files (8x8, grey) and labels of the UCI handwritten digits in one split; no image is in two splits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.Generator(np.random.Philox(key=1797)).permutation(len(data.images))
    ends = np.cumsum(list(SPLIT_IMAGES.values()))
    chosen = np.split(order, ends[:-1])[list(SPLIT_IMAGES).index(split)]
    return tuple(_png(data.images[i]) for i in chosen), tuple(int(data.target[i]) for i in chosen)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class Captions(Listed):
    """Kind `digits`: every image with every caption template, the image first."""

    def __init__(self, split: str):
        self._split, (self._images, self._labels) = split, digits(split)
        self.fingerprint = digest("digits", split, self._labels, CAPTIONS)

    def __len__(self):
        return len(self._images) * len(CAPTIONS)

    def __getitem__(self, i: int) -> Document:
        image, template = divmod(i, len(CAPTIONS))
        caption = CAPTIONS[template].format(WORDS[self._labels[image]])
        return Document((Media("image", self._images[image]), Text(caption)), f"digits/{self._split}[{i}]")


class DigitDocuments(Listed):
    """Kind `digit_documents`: interleaved documents, made from their index alone out of the split's images.

    Three in five are sums of two digits, the others lists of two to four images, all labelled in one style, so that the
    first label tells how to read the next: a few-shot prompt.
    """

    def __init__(self, split: str):
        self._split, (self._images, self._labels) = split, digits(split)
        first_texts = [[part.text for part in self[i].parts if isinstance(part, Text)] for i in range(100)]
        self.fingerprint = digest("digit_documents", split, self._labels, len(self), first_texts)

    def __len__(self):
        return DOCUMENTS[self._split]

    def __getitem__(self, i: int) -> Document:
        draw = philox((1797, list(DOCUMENTS).index(self._split), i))
        if draw.random() < 0.6:
            a, b = draw.integers(len(self._images), size=2)
            answer = f" {WORDS[self._labels[a] + self._labels[b]]}."
            parts = sum_prompt(self._images[a], self._images[b], answer)
        else:
            style = list(LABELS)[draw.integers(len(LABELS))]
            chosen = draw.integers(len(self._images), size=draw.integers(2, 5))
            parts = list_prompt([(self._images[j], self._labels[j]) for j in chosen], style)
        return Document(parts, f"digit_documents/{self._split}[{i}]")


def sum_prompt(a: bytes, b: bytes, answer: str = "", kinds=("image", "image")) -> tuple[Text | Media, ...]:
    """`<a> plus <b> equals` and the answer; without one, a prompt that " twelve" continues.

    Args:
      a: a file that shows or says a digit.
      b: the other one.
      answer: with its space and full stop.
      kinds: the modalities of a and b.
    """
    return Media(kinds[0], a), Text(" plus "), Media(kinds[1], b), Text(" equals" + answer)


def list_prompt(
    shown: list[tuple[bytes, int]], style: str, query: bytes | None = None, kind: str = "image"
) -> tuple[Text | Media, ...]:
    """Digits each with its label; a query comes last, and its label is the continuation.

    Args:
      shown: files that show or say a digit, with the digit.
      style: one of `LABELS`.
      query: a file without its label.
      kind: the modality of the files.
    """
    parts = tuple(part for file, digit in shown for part in (Media(kind, file), Text(f" {LABELS[style](digit)}.")))
    return parts if query is None else (*parts, Media(kind, query))


class Pydoc(Listed):
    """Kind `pydoc`: the Python language reference as `pydoc_data.topics` ships it, a topic a document.

    Topics repeat one another ("specialnames" contains "attribute-access"). A paragraph belongs to the shortest topic
    that has it, so that nothing of the held-out text is in the training text.
    """

    def __init__(self, split: str):
        from pydoc_data.topics import topics

        self._documents, seen = [], set()
        for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
            own = [text for text in prose(topics[name]) if text not in seen]
            seen.update(own)
            if own and split_of(name) == split:
                self._documents.append((name, "\n".join(own)))
        self.fingerprint = digest("pydoc", split, self._documents)

    def __len__(self):
        return len(self._documents)

    def __getitem__(self, i: int) -> Document:
        name, text = self._documents[i]
        return Document((Text(text),), f"pydoc/{name}")


def split_of(name: str) -> str:
    """A tenth of the names each for validation and test, by hash: adding a topic moves no other."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def prose(topic: str) -> list[str]:
    """Paragraphs of a plain-text reST page, one string each: wrapped lines joined, titles without their underline.

    Code, grammar and tables are left out: what remains is sentences.
    """
    topic = re.sub(r"^(\S.*)\n[*=\-~^]{3,}$", r"\n\1.\n", topic, flags=re.MULTILINE)
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", topic))
    return [re.sub(r"^\* ", "", text) for text in paragraphs if _is_prose(text)]


def _is_prose(text: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in text)
    is_code = re.search(r"::=|>>>|^(def|class|if|for|while) ", text)
    return text[-1:] in (".", ":", "?", "!") and letters > 0.85 * len(text) and not is_code
