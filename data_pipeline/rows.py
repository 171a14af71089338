"""One row of a batch from its pieces of documents: tokens, targets, segments, positions, image slots."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline.tokenizer import Encoded, Tokenizer

NO_TARGET = -1
NO_SLOT = -1


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens start:stop of a document's body, and which of its images lie there."""

    encoded: Encoded
    start: int
    stop: int

    @property
    def images(self) -> range:
        return range(*np.searchsorted(self.encoded.image_starts, (self.start, self.stop)).tolist())


def assemble(
    pieces: Sequence[Piece | None],
    seq_len: int,
    tokenizer: Tokenizer,
    image_tokens: int,
    isolate: bool,
    first_image: int,
) -> dict[str, np.ndarray]:
    """Lays pieces one after another: <s>, the piece, and </s> if its document ends there.

    Args:
      pieces: None leaves its segment number unused; what was to stand there is padding, at the end of the row.
      seq_len: T.
      image_tokens: Q.
      isolate: every piece a segment of its own, positions restarting at 0; otherwise one segment and running positions.
      first_image: the number of the row's first image in the batch's buffer.

    Returns:
      int32[T] each: tokens, targets, segment_ids, positions, slots. A caption with Q = 2, alone in a row of 9:

        tokens      <s> <image> <image> <image> </image>  seven   .    </s>  <pad>
        targets     -1    -1      -1      -1     seven      .    </s>   -1    -1
        slots       -1    -1       0       1      -1       -1    -1     -1    -1
        segment_ids  1     1       1       1       1        1     1      1     0
        positions    0     1       2       3       4        5     6      7     0

      As in the released caption loader, the first prediction of an image's text is made at </image>; <s>, <image>, its
      slots and </image> are never predicted, and nothing is predicted across pieces.
    """
    row = {
        "tokens": np.full(seq_len, tokenizer.pad, np.int32),
        "targets": np.full(seq_len, NO_TARGET, np.int32),
        "segment_ids": np.zeros(seq_len, np.int32),
        "positions": np.zeros(seq_len, np.int32) if isolate else np.arange(seq_len, dtype=np.int32),
        "slots": np.full(seq_len, NO_SLOT, np.int32),
    }
    at, image = 0, first_image
    for segment, piece in enumerate(pieces, 1):
        if piece is None:
            continue
        encoded = piece.encoded
        tokens = encoded.tokens[piece.start : piece.stop]
        ended = [tokenizer.eos] if piece.stop == len(encoded.tokens) else []
        tokens = np.concatenate([[tokenizer.bos], tokens, ended]).astype(np.int32)
        span = slice(at, at + len(tokens))
        row["tokens"][span] = tokens
        following = tokens[1:]
        is_text = (following != tokenizer.image) & (following != tokenizer.image_end)
        row["targets"][at : span.stop - 1] = np.where(is_text, following, NO_TARGET)
        row["segment_ids"][span] = segment if isolate else 1
        if isolate:
            row["positions"][span] = np.arange(len(tokens))
        for i in piece.images:
            start = at + 1 + encoded.image_starts[i] - piece.start
            row["slots"][start : start + image_tokens] = image * image_tokens + np.arange(image_tokens)
            image += 1
        at = span.stop
    return row
