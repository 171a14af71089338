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

from data_pipeline.documents import DataError, Media, Text
from kosmos_jax.modality import BOS, EOS, FIRST_PIECE, PAD, UNK, Modality, all_tags

REPEATS = 64
# Only what SentencePiece's normaliser makes a space of too: a cut elsewhere would change ids.
SENTENCE_END = re.compile(r"[.!?]['\"”’)\]]*[ \t]+(?=[^\s])")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The body of a document: no <s>, no </s>.

    An image is `<image>`, then Q slots that repeat the id of `<image>`, then `</image>`; other media likewise.

    Attributes:
      tokens: int32[n].
      learned: bool[n + 1], which of them, and of </s> after them, the model learns to write: supervised text.
      media: the items, in order.
      starts: int32[items], the offset of each item's first slot.
      cuts: int32[c], rising, the last one is n: where the document may be split over rows; after a sentence (and the
        </line> that ends it), before and after an item, never inside one.
    """

    tokens: np.ndarray
    learned: np.ndarray
    media: tuple[Media, ...]
    starts: np.ndarray
    cuts: np.ndarray


class Tokenizer:
    """A SentencePiece model with the tags of KOSMOS-1, and those of other modalities, after its pieces.

    Attributes:
      modalities: those that documents may have.
      size: of the vocabulary.
      tag_ids: the id of each tag; `mask`, the first of them, and `line` stand beside.
      model_bytes: the SentencePiece model.
      kosmos2_tags: whether it has the 1,030 for grounding.
      fingerprint: changes when ids do.
    """

    bos, pad, eos, unk = BOS, PAD, EOS, UNK

    def __init__(self, model_bytes: bytes, kosmos2_tags: bool = False, modalities: Sequence[Modality] = ()):
        """Args: kosmos2_tags: 1,030 more, for grounding. modalities: those that documents may have."""
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        found = (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        if found != (0, 1, 2):
            raise DataError(f"a SentencePiece model with unk, bos, eos = 0, 1, 2 is needed; this one has {found}")
        self.model_bytes, self.modalities = model_bytes, tuple(modalities)
        self.kosmos2_tags = kosmos2_tags
        self.tags = all_tags(modalities, kosmos2_tags)
        self._first_tag = self._pieces.get_piece_size() + 1
        self.tag_ids = ids = {tag: self._first_tag + i for i, tag in enumerate(self.tags)}
        self.mask, self.line = ids["<mask>"], ids["</line>"]
        # What stands for an item: its opening tag, a slot for each vector, its closing tag.
        self._spans = {m.name: [ids[m.tags[0]]] * (1 + m.tokens) + [ids[m.tags[1]]] for m in modalities}
        self.size = self._first_tag + len(self.tags)
        self.fingerprint = hashlib.sha256(model_bytes + repr(self.tags).encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path, kosmos2_tags: bool = False, modalities: Sequence[Modality] = ()) -> "Tokenizer":
        """Reads a SentencePiece model file, such as the published `sentencepiece.bpe.model`; see `__init__`.

        Args:
          path: of the file.
          kosmos2_tags, modalities: see `__init__`.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"data.tokenizer.path: {path} does not exist; leave it empty to train a tokenizer")
        try:
            return cls(path.read_bytes(), kosmos2_tags, modalities)
        except RuntimeError as error:
            raise DataError(f"{path} is no SentencePiece model") from error

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        kosmos2_tags: bool = False,
        modalities: Sequence[Modality] = (),
    ) -> "Tokenizer":
        """Trains a unigram model as the published one (nmt_nfkc, no byte fallback) on the lines of `texts`.

        One thread and a fixed order: the same texts give the same bytes. A line counts at most `REPEATS` times, so that
        captions made from a few templates get pieces of their own but do not crowd out the words of the text.

        Args:
          texts: their lines are learned from.
          vocab_size: pieces.
          kosmos2_tags, modalities: see `__init__`.
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
        return cls(model.getvalue(), kosmos2_tags, modalities)

    def save(self, path: str | Path):
        Path(path).write_bytes(self.model_bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; its lines are joined by </line>, empty ones dropped."""
        return self.encode_document((Text(text),)).tokens.tolist()

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
        return ("<s>", "<pad>", "</s>", "<unk>")[i] if i < FIRST_PIECE else self._pieces.id_to_piece(i - 1)

    def encode_document(self, parts: Sequence[Text | Media]) -> Encoded:
        """Encodes text and media in reading order.

        As in the released text loader, a text is cut in lines, empty ones are dropped, and </line> ends every line but
        the document's last. A line is encoded sentence by sentence; since pieces never span a space this changes no id.

        Raises:
          DataError: an item of a modality that this tokenizer does not have.
        """
        tokens, learned, cuts, media, starts = [], [], [], [], []
        supervised = True  # whether the latest text is learned: its </line> and </s> are then, too
        line_ended = after_item = False

        def put(ids, are_learned):
            tokens.extend(ids)
            learned.extend([are_learned] * len(ids))

        def end_line():
            # </line> stays with its sentence. After an item it stands alone: items keep their exact length.
            if line_ended and tokens:
                put([self.line], supervised)
                if after_item:
                    cuts.append(len(tokens))
                else:
                    cuts[-1] = len(tokens)

        for part in parts:
            if isinstance(part, Media):
                if part.kind not in self._spans:
                    known = ", ".join(self._spans) or "text alone"
                    raise DataError(f"a document has an item of {part.kind!r}; config.model.perception has {known}")
                end_line()
                media.append(part)
                starts.append(len(tokens) + 1)
                put(self._spans[part.kind], False)
                cuts.append(len(tokens))
                line_ended, after_item = False, True
                continue
            for i, line in enumerate(part.text.split("\n")):
                line_ended |= i > 0
                for ids in self._sentences(line):
                    end_line()
                    supervised = part.supervised
                    put(ids, supervised)
                    cuts.append(len(tokens))
                    line_ended = after_item = False
        learned.append(supervised)
        starts, cuts = (np.array(values, np.int32) for values in (starts, cuts))
        return Encoded(np.array(tokens, np.int32), np.array(learned, bool), tuple(media), starts, cuts)

    def _sentences(self, line: str) -> list[list[int]]:
        """Ids of each sentence of a line; a sentence of which the normaliser leaves nothing is dropped."""
        if not line.strip(" \t\r"):  # a text may have a million such lines, and SentencePiece takes its time for each
            return []
        ends = [match.end() for match in SENTENCE_END.finditer(line)]
        sentences = [line[a:b] for a, b in zip([0, *ends], [*ends, len(line)], strict=True)]
        encoded = map(self._pieces.encode, sentences)  # one by one: SentencePiece's own batches cost 20 times as much
        return [[i + 1 if i else self.unk for i in ids] for ids in encoded if ids]
