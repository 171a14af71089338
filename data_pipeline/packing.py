"""Documents into rows of a fixed number of tokens and images, from their lengths alone."""

import bisect
import dataclasses

import numpy as np

from data_pipeline.documents import RowError

OPEN_ROWS = 64
WAITING_ROWS = 4
SHORTEST_PIECE = 1 / 16
# OBELICS (arXiv 2306.16527) has pages of at most 2,000 words: all of them fit from rows of 256 tokens on.
ROWS_AN_IMAGE = 16


@dataclasses.dataclass
class Row:
    """`pieces` are (document, start, stop): offsets in the document's body."""

    room: int
    image_room: int
    pieces: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

    def put(self, piece: tuple[int, int, int], cost: int, images: int):
        self.pieces.append(piece)
        self.room -= cost
        self.image_room -= images


class Packer:
    """Fills rows with documents in the order in which they come.

    A document costs its length, one <s> for each piece, and one </s> where it ends.

    - With images it is never split. `WAITING_ROWS` rows' worth of such documents wait, and a row is the oldest of them
      with those others that together come nearest to filling it (a knapsack, solved exactly).
    - Text is split over rows, after a sentence: of up to `OPEN_ROWS` rows that have room, the next piece takes the one
      that it fills best. So that documents are not split into tiny fragments, a piece has at least `SHORTEST_PIECE` of
      a row.
    - So is a document with images that no row could hold, but never inside an image. It may have at most
      `ROWS_AN_IMAGE` rows' worth of tokens for each image: beyond that it is text that an image hardly belongs to, such
      as a caption of a megabyte.
    """

    def __init__(self, seq_len: int, images_per_row: int):
        self._seq_len, self._images_per_row = seq_len, images_per_row
        self._shortest = int(seq_len * SHORTEST_PIECE)
        self._waiting: list[tuple[int, int, int]] = []  # document, cost, images
        self._waiting_cost = 0
        self._open: list[Row] = []  # by rising room
        self._closed: list[Row] = []

    def add(self, document: int, cuts: np.ndarray, images: np.ndarray):
        """Takes the next document.

        Args:
          cuts, images: its legal cuts, and the number of its images before each, as in `index.Index`.

        Raises:
          RowError: no row could hold one of its images, or it is too long for their number. Nothing was taken.
        """
        length, count = int(cuts[-1]), int(images[-1])
        if count and length > ROWS_AN_IMAGE * self._seq_len * count:
            rows = f"{ROWS_AN_IMAGE} rows of {self._seq_len} tokens for each image"
            raise RowError("", f"it has {length:,} tokens and {count} image(s); the limit is {rows}")
        if count and length + 2 <= self._seq_len and count <= self._images_per_row:
            self._waiting.append((document, length + 2, count))
            self._waiting_cost += length + 2
            while self._waiting_cost >= WAITING_ROWS * self._seq_len:
                self._close_best_row()
        else:
            self._run_on(document, *self._with_hard_cuts(cuts, images))

    def finish(self) -> list[Row]:
        """All rows; nothing waits any more."""
        while self._waiting:
            self._close_best_row()
        rows, self._closed, self._open = self._closed + self._open, [], []
        return rows

    def _close_best_row(self):
        """The oldest waiting document and the best company for it.

        fewest[t] is the least number of images with which some set of the documents seen so far has t tokens.
        """
        size, (_, first_cost, first_images) = self._seq_len + 1, self._waiting[0]
        fewest = np.full(size, self._images_per_row + 1)
        fewest[first_cost] = first_images
        taken = np.zeros((len(self._waiting), size), bool)
        for i, (_, cost, images) in enumerate(self._waiting[1:], 1):
            with_it = fewest[: size - cost] + images
            taken[i, cost:] = with_it < fewest[cost:]
            fewest[cost:] = np.minimum(with_it, fewest[cost:])
        tokens = int(np.flatnonzero(fewest <= self._images_per_row)[-1])
        chosen = {0}
        for i in range(len(self._waiting) - 1, 0, -1):
            if taken[i, tokens]:
                chosen.add(i)
                tokens -= self._waiting[i][1]
        row = Row(self._seq_len, self._images_per_row)
        for i in sorted(chosen):
            document, cost, images = self._waiting[i]
            row.put((document, 0, cost - 2), cost, images)
            self._waiting_cost -= cost
        self._waiting = [item for i, item in enumerate(self._waiting) if i not in chosen]
        self._closed.append(row)

    def _run_on(self, document: int, cuts: np.ndarray, images: np.ndarray):
        start, done, length = 0, 0, int(cuts[-1])
        while start < length:
            row, stop = self._best_place(cuts, images, start, done)
            upto = int(images[np.searchsorted(cuts, stop)])
            row.put((document, start, stop), stop - start + 1 + (stop == length), upto - done)
            start, done = stop, upto
            bisect.insort(self._open, row, key=lambda row: row.room)
            if len(self._open) > OPEN_ROWS:
                self._closed.append(self._open.pop(0))

    def _best_place(self, cuts: np.ndarray, images: np.ndarray, start: int, done: int) -> tuple[Row, int]:
        """The row in which the rest of a document, as much of it as fits, leaves the least room, and where it stops."""
        rows = [*self._open, Row(self._seq_len, self._images_per_row)]
        rooms, image_rooms = np.array([(row.room, row.image_room) for row in rows]).T
        length = int(cuts[-1])
        near = slice(np.searchsorted(cuts, start, "right"), np.searchsorted(cuts, start + self._seq_len))
        cuts, images = cuts[near], images[near] - done
        fits = (cuts - start + 1 + (cuts == length) <= rooms[:, None]) & (images <= image_rooms[:, None])
        long_enough = cuts - start >= min(self._shortest, length - start)
        stops = np.where(fits & long_enough, cuts, 0).max(axis=1)
        if not stops[-1]:  # a short piece, and what follows it fits no row
            stops[-1] = cuts[fits[-1]].max()
        left = np.where(stops > 0, rooms - (stops - start + 1 + (stops == length)), self._seq_len)
        best = int(np.argmin(left))
        if best < len(self._open):
            self._open.pop(best)
        return rows[best], int(stops[best])

    def _with_hard_cuts(self, cuts: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cuts a sentence that no row could hold every seq_len - 2 tokens: cut, but never lost."""
        longest = self._seq_len - 2
        lengths, own_images = np.diff(cuts, prepend=0), np.diff(images, prepend=0)
        if own_images.any() and (self._images_per_row == 0 or lengths[own_images > 0].max() > longest):
            raise RowError(
                "",
                f"a row cannot hold an image: with <s> and </s> it takes {lengths[own_images > 0].max() + 2} tokens, "
                f"data.seq_len is {self._seq_len}; images_per_row is {self._images_per_row}",
            )
        if lengths.max() <= longest:
            return cuts, images
        hard = [np.arange(stop - n + longest, stop, longest) for n, stop in zip(lengths, cuts, strict=True)]
        all_cuts = np.union1d(cuts, np.concatenate(hard))
        before = np.searchsorted(cuts, all_cuts, "right") - 1
        return all_cuts, np.where(before >= 0, images[np.maximum(before, 0)], 0)
