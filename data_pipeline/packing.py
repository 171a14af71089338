"""Documents into rows of a fixed number of tokens and of media items, from their lengths alone."""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline.documents import RowError

OPEN_ROWS = 64
WAITING_ROWS = 4
SHORTEST_PIECE = 1 / 16
# OBELICS (arXiv 2306.16527) has pages of at most 2,000 words: all of them fit from rows of 256 tokens on.
ROWS_AN_ITEM = 16


@dataclasses.dataclass
class Row:
    """`pieces` are (document, start, stop): offsets in the document's body; `item_room` is int[K], by modality."""

    room: int
    item_room: np.ndarray
    pieces: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

    def put(self, piece: tuple[int, int, int], cost: int, items: np.ndarray):
        self.pieces.append(piece)
        self.room -= cost
        self.item_room = self.item_room - items


class Packer:
    """Fills rows with documents in the order in which they come.

    A document costs its length, one <s> for each piece, and one </s> where it ends.

    - With items of media it is never split. Where rows have room for one modality, `WAITING_ROWS` rows' worth of such
      documents wait, and a row is the oldest of them with those others that together come nearest to filling it (a
      knapsack, solved exactly). With several modalities a document takes the open row that it fills best.
    - Text is split over rows, after a sentence: of up to `OPEN_ROWS` rows that have room, the next piece takes the one
      that it fills best. So that documents are not split into tiny fragments, a piece has at least `SHORTEST_PIECE` of
      a row.
    - So is a document with items that no row could hold, but never inside an item. It may have at most `ROWS_AN_ITEM`
      rows' worth of tokens for each item: beyond that it is text that an item hardly belongs to, such as a caption of a
      megabyte.
    """

    def __init__(self, seq_len: int, per_row: Sequence[int]):
        """Args: per_row: places for items in a row, for each of K modalities."""
        self._seq_len, self._per_row = seq_len, np.array(per_row, np.int64).reshape(len(per_row))
        (self._placed,) = np.nonzero(self._per_row)  # the modalities that rows have room for
        self._knapsack = int(self._placed[0]) if len(self._placed) == 1 else None
        self._shortest = int(seq_len * SHORTEST_PIECE)
        self._waiting: list[tuple[int, int, np.ndarray]] = []  # document, cost, items
        self._waiting_cost = 0
        self._open: list[Row] = []  # by rising room
        self._closed: list[Row] = []

    def add(self, document: int, cuts: np.ndarray, items: np.ndarray):
        """Takes the next document.

        Args:
          document: its number.
          cuts: int[c], its legal cuts, see `index.Index`.
          items: int[c, K], the number of its items of each modality before each cut.

        Raises:
          RowError: no row could hold one of its items, or it is too long for their number. Nothing was taken.
        """
        length, counts = int(cuts[-1]), items[-1]
        total = int(counts.sum())
        if total and length > ROWS_AN_ITEM * self._seq_len * total:
            rows = f"{ROWS_AN_ITEM} rows of {self._seq_len} tokens for each item"
            raise RowError("", f"it has {length:,} tokens and {total} item(s) of media; the limit is {rows}")
        if not (total and length + 2 <= self._seq_len and (counts <= self._per_row).all()):
            self._run_on(document, *self._with_hard_cuts(cuts, items))
        elif self._knapsack is None:
            self._run_on(document, cuts[-1:], items[-1:])
        else:
            self._waiting.append((document, length + 2, counts))
            self._waiting_cost += length + 2
            while self._waiting_cost >= WAITING_ROWS * self._seq_len:
                self._close_best_row()

    def finish(self) -> list[Row]:
        """All rows; nothing waits any more."""
        while self._waiting:
            self._close_best_row()
        rows, self._closed, self._open = self._closed + self._open, [], []
        return rows

    def _close_best_row(self):
        """The oldest waiting document and the best company for it.

        fewest[t] is the least number of items with which some set of the documents seen so far has t tokens.
        """
        size, limit, (_, first_cost, first_items) = self._seq_len + 1, self._per_row[self._knapsack], self._waiting[0]
        fewest = np.full(size, limit + 1)
        fewest[first_cost] = first_items[self._knapsack]
        taken = np.zeros((len(self._waiting), size), bool)
        for i, (_, cost, items) in enumerate(self._waiting[1:], 1):
            with_it = fewest[: size - cost] + items[self._knapsack]
            taken[i, cost:] = with_it < fewest[cost:]
            fewest[cost:] = np.minimum(with_it, fewest[cost:])
        tokens = int(np.flatnonzero(fewest <= limit)[-1])
        chosen = {0}
        for i in range(len(self._waiting) - 1, 0, -1):
            if taken[i, tokens]:
                chosen.add(i)
                tokens -= self._waiting[i][1]
        row = Row(self._seq_len, self._per_row)
        for i in sorted(chosen):
            document, cost, items = self._waiting[i]
            row.put((document, 0, cost - 2), cost, items)
            self._waiting_cost -= cost
        self._waiting = [item for i, item in enumerate(self._waiting) if i not in chosen]
        self._closed.append(row)

    def _run_on(self, document: int, cuts: np.ndarray, items: np.ndarray):
        start, done, length = 0, np.zeros_like(self._per_row), int(cuts[-1])
        while start < length:
            row, stop = self._best_place(cuts, items, start, done)
            upto = items[np.searchsorted(cuts, stop)]
            row.put((document, start, stop), stop - start + 1 + (stop == length), upto - done)
            start, done = stop, upto
            bisect.insort(self._open, row, key=lambda row: row.room)
            if len(self._open) > OPEN_ROWS:
                # A row without places for items is closed before one that is nearly full of tokens.
                full = (i for i, row in enumerate(self._open) if not row.item_room[self._placed].any())
                self._closed.append(self._open.pop(next(full, 0)))

    def _best_place(self, cuts: np.ndarray, items: np.ndarray, start: int, done: np.ndarray) -> tuple[Row, int]:
        """The row in which the rest of a document, as much of it as fits, leaves the least room, and where it stops."""
        rows = [*self._open, Row(self._seq_len, self._per_row)]
        rooms = np.array([row.room for row in rows])
        length = int(cuts[-1])
        near = slice(np.searchsorted(cuts, start, "right"), np.searchsorted(cuts, start + self._seq_len))
        cuts, items = cuts[near], items[near] - done
        fits = cuts - start + 1 + (cuts == length) <= rooms[:, None]
        if items.any():
            fits &= (items <= np.array([row.item_room for row in rows])[:, None]).all(axis=-1)
        long_enough = cuts - start >= min(self._shortest, length - start)
        stops = np.where(fits & long_enough, cuts, 0).max(axis=1)
        if not stops[-1]:  # a short piece, and what follows it fits no row
            stops[-1] = cuts[fits[-1]].max()
        left = np.where(stops > 0, rooms - (stops - start + 1 + (stops == length)), self._seq_len)
        best = int(np.argmin(left))
        if best < len(self._open):
            self._open.pop(best)
        return rows[best], int(stops[best])

    def _with_hard_cuts(self, cuts: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cuts a sentence that no row could hold every seq_len - 2 tokens: cut, but never lost."""
        longest = self._seq_len - 2
        lengths = np.diff(cuts, prepend=0)
        own_items = np.diff(items, prepend=np.zeros((1, len(self._per_row)), items.dtype), axis=0)
        with_items = lengths[own_items.any(axis=1)]
        if (own_items > self._per_row).any() or (with_items > longest).any():
            raise RowError(
                "",
                f"a row cannot hold one of its items: with <s> and </s> it takes {with_items.max() + 2} tokens, "
                f"data.seq_len is {self._seq_len}; per_row is {self._per_row.tolist()}",
            )
        if lengths.max() <= longest:
            return cuts, items
        hard = [np.arange(stop - n + longest, stop, longest) for n, stop in zip(lengths, cuts, strict=True)]
        all_cuts = np.union1d(cuts, np.concatenate(hard))
        before = np.searchsorted(cuts, all_cuts, "right") - 1
        return all_cuts, np.where((before >= 0)[:, None], items[np.maximum(before, 0)], 0)
