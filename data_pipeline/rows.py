"""One row of a batch from its pieces of documents: tokens, targets, segments, positions, slots of media."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.documents import Media
from data_pipeline.tokenizer import Encoded, Tokenizer
from kosmos_jax.modality import Table

NO_TARGET = -1
NO_SLOT = -1


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens start:stop of a document's body, and which of its items lie there."""

    encoded: Encoded
    start: int
    stop: int

    @property
    def items(self) -> range:
        """The numbers of the document's items that lie in the piece."""
        return range(*np.searchsorted(self.encoded.starts, (self.start, self.stop)).tolist())

    @property
    def media(self) -> tuple[Media, ...]:
        return tuple(self.encoded.media[n] for n in self.items)


def assemble(
    pieces: Sequence[Piece | None],
    seq_len: int,
    tokenizer: Tokenizer,
    table: Table,
    isolate: bool,
    first_items: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """Lays pieces one after another: <s>, the piece, and </s> if its document ends there.

    Args:
      pieces: None leaves its segment number unused; what was to stand there is padding, at the end of the row.
      seq_len: T.
      tokenizer: of the pieces.
      table: where the vectors of the batch's items lie.
      isolate: every piece a segment of its own, positions restarting at 0; otherwise one segment and running positions.
      first_items: the number of the row's first item in the batch, by modality.

    Returns:
      int32[T] each: tokens, targets, segment_ids, positions, slots. A caption with Q = 2, alone in a row of 9:

        tokens      <s> <image> <image> <image> </image>  seven   .    </s>  <pad>
        targets     -1    -1      -1      -1     seven      .    </s>   -1    -1
        slots       -1    -1       0       1      -1       -1    -1     -1    -1
        segment_ids  1     1       1       1       1        1     1      1     0
        positions    0     1       2       3       4        5     6      7     0

      As in the released caption loader, the first prediction of an image's text is made at </image>; <s>, <image>, its
      slots and </image> are never predicted, and nothing is predicted across pieces. Text that is given and not
      supervised is not predicted either: a question, and an answer that is learned with the end after it:

        tokens      <s>  a  digit  ?  seven   .   </s>
        targets     -1  -1   -1  seven  .   </s>   -1
    """
    row = {
        "tokens": np.full(seq_len, tokenizer.pad, np.int32),
        "targets": np.full(seq_len, NO_TARGET, np.int32),
        "segment_ids": np.zeros(seq_len, np.int32),
        "positions": np.zeros(seq_len, np.int32) if isolate else np.arange(seq_len, dtype=np.int32),
        "slots": np.full(seq_len, NO_SLOT, np.int32),
    }
    at, numbers = 0, dict(first_items)
    for segment, piece in enumerate(pieces, 1):
        if piece is None:
            continue
        encoded = piece.encoded
        body = encoded.tokens[piece.start : piece.stop]
        ended = [tokenizer.eos] if piece.stop == len(encoded.tokens) else []
        tokens = np.concatenate([[tokenizer.bos], body, ended]).astype(np.int32)
        span = slice(at, at + len(tokens))
        row["tokens"][span] = tokens
        learned = encoded.learned[piece.start : piece.start + len(tokens) - 1]
        row["targets"][at : span.stop - 1] = np.where(learned, tokens[1:], NO_TARGET)
        row["segment_ids"][span] = segment if isolate else 1
        if isolate:
            row["positions"][span] = np.arange(len(tokens))
        for n in piece.items:
            kind = encoded.media[n].kind
            slots = table.slots(kind, numbers[kind])
            start = at + 1 + encoded.starts[n] - piece.start
            row["slots"][start : start + len(slots)] = slots
            numbers[kind] += 1
        at = span.stop
    return row
