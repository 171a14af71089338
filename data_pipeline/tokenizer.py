"""Text and documents to token ids and back, in the id layout of fairseq and the released Kosmos models.

    <s> 0   <pad> 1   </s> 2   <unk> 3   pieces: SentencePiece id + 1   then the tags

SentencePiece's own ids 0, 1, 2 are unk, bos and eos, so its pieces start at 3 and ours at 4, and the tags follow the
last piece. The published model of 64,000 pieces gives 64,007 ids, and 65,037 with the grounding tags of Kosmos-2.

A tag is never made from text: the characters "<image>" in a document are encoded as characters.
"""

import collections
import dataclasses
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.documents import DataError

TAGS = ("<mask>", "</doc>", "<image>", "</image>", "</chunk>", "</line>")
KOSMOS2_TAGS = (
    *("<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>", "<grounding>"),
    *(f"<patch_index_{i:04d}>" for i in range(1024)),
)
REPEATS = 64
# Only what SentencePiece's normaliser makes a space of too: a cut elsewhere would change ids.
SENTENCE_END = re.compile(r"[.!?]['\"”’)\]]*[ \t]+(?=[^\s])")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The body of a document: no <s>, no </s>.

    An image is `<image>`, then Q slots that repeat the id of `<image>`, then `</image>`.

    Attributes:
      tokens: int32[n].
      images: encoded image files, in order.
      image_starts: int32[images], the offset of each image's first slot.
      cuts: int32[c], rising, the last one is n: where the document may be split over rows; after a sentence (and the
        </line> that ends it), before and after an image, never inside one.
    """

    tokens: np.ndarray
    images: tuple[bytes, ...]
    image_starts: np.ndarray
    cuts: np.ndarray


class Tokenizer:
    """A SentencePiece model with the tags of KOSMOS-1 after its pieces."""

    bos, pad, eos, unk = 0, 1, 2, 3

    def __init__(self, model_bytes: bytes, kosmos2_tags: bool = False):
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        found = (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        if found != (0, 1, 2):
            raise DataError(f"a SentencePiece model with unk, bos, eos = 0, 1, 2 is needed; this one has {found}")
        self.model_bytes = model_bytes
        self.tags = TAGS + (KOSMOS2_TAGS if kosmos2_tags else ())
        self._first_tag = self._pieces.get_piece_size() + 1
        self.mask, self.doc, self.image, self.image_end, self.chunk, self.line = (
            self._first_tag + i for i in range(len(TAGS))
        )
        self.size = self._first_tag + len(self.tags)
        self.fingerprint = hashlib.sha256(model_bytes + bytes([kosmos2_tags])).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path, kosmos2_tags: bool = False) -> "Tokenizer":
        """Reads a SentencePiece model file, such as the published `sentencepiece.bpe.model`."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"data.tokenizer.path: {path} does not exist; leave it empty to train a tokenizer")
        try:
            return cls(path.read_bytes(), kosmos2_tags)
        except RuntimeError as error:
            raise DataError(f"{path} is no SentencePiece model") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, kosmos2_tags: bool = False) -> "Tokenizer":
        """Trains a unigram model as the published one (nmt_nfkc, no byte fallback) on the lines of `texts`.

        One thread and a fixed order: the same texts give the same bytes. A line counts at most `REPEATS` times, so that
        captions made from a few templates get pieces of their own but do not crowd out the words of the text.
        """
        import sentencepiece

        counts = collections.Counter(line.strip() for text in texts for line in text.splitlines() if line.strip())
        lines = [line for line, count in counts.items() for _ in range(min(count, REPEATS))]
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                normalization_rule_name="nmt_nfkc",
                character_coverage=0.99999,
                max_sentence_length=1 << 20,
                shuffle_input_sentence=False,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise DataError(
                f"data.tokenizer.vocab_size={vocab_size} cannot be trained on {len(counts)} distinct lines: {error}"
            ) from error
        return cls(model.getvalue(), kosmos2_tags)

    def save(self, path: str | Path):
        Path(path).write_bytes(self.model_bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; its lines are joined by </line>, empty ones dropped."""
        return self.encode_document((text,), image_tokens=0).tokens.tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: </line> is a newline and every other tag nothing."""
        lines, first_tag = [[]], self._first_tag
        for i in map(int, ids):
            if i == self.line:
                lines.append([])
            elif self.unk <= i < first_tag:
                lines[-1].append(i - 1 if i > self.unk else 0)
        return "\n".join(self._pieces.decode(line) for line in lines)

    def token(self, i: int) -> str:
        """The written form of one id, for people who look at batches."""
        if i >= self._first_tag:
            return self.tags[i - self._first_tag]
        return ("<s>", "<pad>", "</s>", "<unk>")[i] if i < 4 else self._pieces.id_to_piece(i - 1)

    def encode_document(self, segments: Sequence[str | bytes], image_tokens: int) -> Encoded:
        """Encodes text and images in reading order.

        As in the released text loader, a text is cut in lines, empty ones are dropped, and </line> ends every line but
        the document's last. A line is encoded sentence by sentence; since pieces never span a space this changes no id.

        Args:
          segments: str is text, bytes an encoded image.
          image_tokens: Q, the number of slots of an image.
        """
        tokens, cuts, images, image_starts = [], [], [], []
        image_ids = [self.image] * (1 + image_tokens) + [self.image_end]
        line_ended = after_image = False

        def end_line():
            # </line> stays with its sentence. After an image it stands alone: images keep their exact length.
            if line_ended and tokens:
                tokens.append(self.line)
                if after_image:
                    cuts.append(len(tokens))
                else:
                    cuts[-1] = len(tokens)

        for segment in segments:
            if isinstance(segment, bytes):
                end_line()
                images.append(segment)
                image_starts.append(len(tokens) + 1)
                tokens += image_ids
                cuts.append(len(tokens))
                line_ended, after_image = False, True
                continue
            for i, line in enumerate(segment.split("\n")):
                line_ended |= i > 0
                for ids in self._sentences(line):
                    end_line()
                    tokens += ids
                    cuts.append(len(tokens))
                    line_ended = after_image = False
        return Encoded(
            np.array(tokens, np.int32), tuple(images), np.array(image_starts, np.int32), np.array(cuts, np.int32)
        )

    def _sentences(self, line: str) -> list[list[int]]:
        """Ids of each sentence of a line; a sentence of which the normaliser leaves nothing is dropped."""
        if not line.strip(" \t\r"):  # a text may have a million such lines, and SentencePiece takes its time for each
            return []
        ends = [match.end() for match in SENTENCE_END.finditer(line)]
        sentences = [line[a:b] for a, b in zip([0, *ends], [*ends, len(line)], strict=True)]
        encoded = map(self._pieces.encode, sentences)  # one by one: SentencePiece's own batches cost 20 times as much
        return [[i + 1 if i else self.unk for i in ids] for ids in encoded if ids]
