"""Rows of a batch from pieces of documents, all at once by NumPy: tokens, targets, segments, positions, slots."""

import dataclasses
from collections.abc import Sequence

import numpy as np

NO_TARGET = -1
NO_SLOT = -1


@dataclasses.dataclass
class Pieces:
    """Pieces of documents, row by row in the order in which they stand there.

    Attributes:
      row: int64[P], the row of each, never falling.
      segment: int64[P], its number in the row, from 1. One that is missing leaves padding at the end of the row.
      tokens: of each its tokens, an integer array [length].
      length: int64[P].
      ends: bool[P], whether its document ends with it.
      given: int64[S, 3]: a piece, and start and stop in it of text that is read and not learned; the </s> after the
        piece counts as its last token.
      items: int64[M, 4]: a piece, the offset in it of an item's first slot, Q, and the slot of the batch that it has.
    """

    row: np.ndarray
    segment: np.ndarray
    tokens: Sequence[np.ndarray]
    length: np.ndarray
    ends: np.ndarray
    given: np.ndarray
    items: np.ndarray


def assemble(pieces: Pieces, rows: int, seq_len: int, tokenizer, isolate: bool) -> dict[str, np.ndarray]:
    """Lays pieces one after another: <s>, the piece, and </s> if its document ends there.

    Args:
      pieces: of all rows.
      rows: B.
      seq_len: T.
      tokenizer: of the pieces; its bos, pad and eos are used.
      isolate: every piece a segment of its own, positions restarting at 0; otherwise one segment and running positions.

    Returns:
      int32[B, T] each: tokens, targets, segment_ids, positions, slots. A caption with Q = 2, alone in a row of 9:

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
    tokens = np.full(rows * seq_len, tokenizer.pad, np.int32)
    segments, slots = np.zeros(rows * seq_len, np.int32), np.full(rows * seq_len, NO_SLOT, np.int32)
    positions = np.zeros(rows * seq_len, np.int32) if isolate else np.tile(np.arange(seq_len, dtype=np.int32), rows)
    learned = np.zeros(rows * seq_len, bool)

    cost = pieces.length + 1 + pieces.ends
    begin = np.cumsum(cost) - cost
    first_of_row = np.searchsorted(pieces.row, pieces.row)
    at = begin - begin[first_of_row] + pieces.row * seq_len if len(cost) else begin
    for place, length, body in zip((at + 1).tolist(), pieces.length.tolist(), pieces.tokens, strict=True):
        tokens[place : place + length] = body
    tokens[at] = tokenizer.bos
    tokens[(at + cost - 1)[pieces.ends]] = tokenizer.eos

    everywhere = spans(at, cost)
    segments[everywhere] = np.repeat(pieces.segment.astype(np.int32), cost) if isolate else 1
    if isolate:
        positions[everywhere] = spans(np.zeros(len(cost), np.int64), cost)
    learned[everywhere] = True
    learned[at] = False
    if len(pieces.given):
        piece, start, stop = pieces.given.T
        learned[spans(at[piece] + 1 + start, stop - start)] = False
    if len(pieces.items):
        piece, start, count, slot = pieces.items.T
        first = at[piece] + 1 + start
        where = spans(first, count)
        slots[where] = np.repeat(slot - first, count) + where
        learned[spans(first - 1, count + 2)] = False  # with its tags
    targets = np.full(rows * seq_len, NO_TARGET, np.int32)
    targets[:-1] = np.where(learned[1:], tokens[1:], NO_TARGET)
    arrays = dict(tokens=tokens, targets=targets, segment_ids=segments, positions=positions, slots=slots)
    return {name: array.reshape(rows, seq_len) for name, array in arrays.items()}


def spans(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """int64[sum(length)]: start[0], start[0] + 1, ... for length[0] numbers, then those of the next span."""
    end = np.cumsum(length)
    found = np.repeat(start - end + length, length)
    found += np.arange(len(found))
    return found
