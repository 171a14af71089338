"""Documents into rows of T tokens, and rows into bundles that share places for media, from lengths alone.

A document costs its length, one <s> for each piece, and one </s> where it ends.

- With media it is never split if a row can hold it: best-fit decreasing, on the histogram of lengths.
- Text runs on from row to row. A row ends after a sentence if one ends in its last `TAIL`, otherwise inside one. So do
  documents with media that no row could hold, but never inside an item.
- Rows have as many items as they come to. `bundles` puts G rows together so that every G have about as many, and a
  batch reserves places for G rows at a time: a limit for single rows would leave their text or their places empty.

All of it is array operations on the documents of one block; see `plan.py`.
"""

import bisect
import itertools
from typing import NamedTuple

import numpy as np

# Share of a row in which it looks for the end of a sentence.
TAIL = 1 / 16
# How many times as many items as places there are when rows are packed by items; a few too many only need more bundles.
SCARCE = 1.25
# OBELICS (arXiv 2306.16527) has pages of at most 2,000 words: all of them fit from rows of 256 tokens on.
ROWS_AN_ITEM = 16


class Documents(NamedTuple):
    """What packing must know of the documents of a block.

    Attributes:
      lengths: int64[D].
      cuts: int64[C], the legal cuts of each in turn, rising, the last one its length; none if the length is 0.
      first_cut: int64[D + 1]; document d has the cuts first_cut[d]:first_cut[d + 1].
      items: int64[C, K], how many of the document's items of each of K modalities lie before the cut.
    """

    lengths: np.ndarray
    cuts: np.ndarray
    first_cut: np.ndarray
    items: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """int64[D, K]: the items of each document."""
        some = self.lengths > 0
        found = np.zeros((len(self.lengths), self.items.shape[1]), np.int64)
        found[some] = self.items[self.first_cut[1:][some] - 1]
        return found


class Rows(NamedTuple):
    """Rows of pieces.

    Attributes:
      first: int64[R + 1]; row r has the pieces first[r]:first[r + 1].
      pieces: int32[P, 3]: document, start, stop; token offsets in the document's body.
      tokens: int64[R], with every <s> and </s>.
      items: int64[R, K].
      skipped: int64[], the documents that rows cannot hold, or that have more than `ROWS_AN_ITEM` rows' worth of tokens
        for each item: such a text is one that an item hardly belongs to, a caption of a megabyte.
    """

    first: np.ndarray
    pieces: np.ndarray
    tokens: np.ndarray
    items: np.ndarray
    skipped: np.ndarray


def pack(
    documents: Documents, seq_len: int, places: np.ndarray, size: int, seed: int, without: np.ndarray | None = None
) -> Rows:
    """Rows of the documents.

    Args:
      documents: of one block.
      seq_len: T.
      places: int64[K], places for items in a bundle; a row never has more.
      size: G, rows of a bundle.
      seed: documents of one length are dealt in an order that follows from it, and text runs on in such an order.
      without: bool[D], documents that are left out, if any are.
    """
    counts, total = documents.counts, documents.counts.sum(axis=1)
    too_long = (total > 0) & (documents.lengths > ROWS_AN_ITEM * seq_len * total)
    wanted = documents.lengths > 0 if without is None else (documents.lengths > 0) & ~without
    skipped = wanted & (too_long | _unplaceable(documents, seq_len, places))
    kept = wanted & ~skipped
    whole = kept & (total > 0) & (documents.lengths + 2 <= seq_len) & (counts <= places).all(axis=1)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(kept))
    parts = [
        _whole_rows(documents, order[whole[order]], seq_len, places, size),
        _running_rows(documents, order[(kept & ~whole)[order]], seq_len, places),
    ]
    (whole_row, whole_pieces), (running_row, running_pieces) = parts
    row = np.concatenate([whole_row, running_row + (whole_row.max(initial=-1) + 1)])
    pieces = np.concatenate([whole_pieces, running_pieces])
    document, start, stop = pieces.T
    first = np.concatenate([[0], np.cumsum(np.bincount(row))])
    cost = stop - start + 1 + (stop == documents.lengths[document])
    items = _items_before(documents, document, stop) - _items_before(documents, document, start)
    # No row is empty, which reduceat would not take.
    tokens, items = (np.add.reduceat(each, first[:-1]) if len(row) else each for each in (cost, items))
    return Rows(first, pieces.astype(np.int32), tokens, items, np.flatnonzero(skipped))


def _unplaceable(documents: Documents, seq_len: int, places: np.ndarray) -> np.ndarray:
    """bool[D]: which documents have an item that no row could hold."""
    if not documents.items.any():
        return np.zeros(len(documents.lengths), bool)
    steps = np.diff(documents.cuts, prepend=0)
    own = np.diff(documents.items, axis=0, prepend=np.zeros((1, documents.items.shape[1]), np.int64))
    begins = documents.first_cut[:-1][documents.lengths > 0]
    steps[begins], own[begins] = documents.cuts[begins], documents.items[begins]
    bad = (own > places).any(axis=1) | (own.any(axis=1) & (steps > seq_len - 2))
    before = np.concatenate([[0], np.cumsum(bad)])
    return before[documents.first_cut[1:]] > before[documents.first_cut[:-1]]


def _items_before(documents: Documents, document: np.ndarray, at: np.ndarray) -> np.ndarray:
    """int64[n, K]: the items of a document before a token offset."""
    if not documents.items.any():
        return np.zeros((len(at), documents.items.shape[1]), np.int64)
    # Cuts of all documents, each shifted past those of the documents before it, are one rising sequence.
    shift = np.concatenate([[0], np.cumsum(documents.lengths + 1)])
    owner = np.repeat(np.arange(len(documents.lengths)), np.diff(documents.first_cut))
    last = np.searchsorted(documents.cuts + shift[owner], at + shift[document], "right") - 1
    inside = last >= documents.first_cut[document]
    return np.where(inside[:, None], documents.items[np.maximum(last, 0)], 0)


def _whole_rows(documents: Documents, order: np.ndarray, seq_len: int, places: np.ndarray, size: int):
    """Row and piece of each document in `order`."""
    counts, cost = documents.counts[order], documents.lengths[order] + 2
    # Items count as the share of a row's tokens that they are of its places: its bundle's, so that no row has more than
    # a bundle. Where places run out long before tokens, its own part of them: full rows would not fit together.
    scarce = counts.sum(axis=0) * seq_len * size > SCARCE * cost.sum() * np.maximum(places, 1)
    room = np.maximum(np.where(scarce, places // size, places), 1)
    room = np.where((counts > room).any(axis=0), places, room)  # or a document would not fit into any row
    share = -(-counts * seq_len // np.maximum(room, 1))
    sizes = np.maximum(cost, share.max(axis=1, initial=0))
    row = best_fit(sizes, seq_len)
    by_row = np.argsort(row, kind="stable")
    chosen = order[by_row]
    return row[by_row], np.stack([chosen, np.zeros_like(chosen), documents.lengths[chosen]], axis=1)


def best_fit(sizes: np.ndarray, room: int) -> np.ndarray:
    """int64[n], the row of each size: best-fit decreasing, where equal sizes and equal rooms are one step.

    Args:
      sizes: int64[n], at most `room`; of equal ones the first comes first.
      room: of a row.
    """
    if not len(sizes):
        return np.zeros(0, np.int64)
    order = np.argsort(-sizes, kind="stable")
    values, first = np.unique(-sizes[order], return_index=True)
    row, count = np.empty(len(sizes), np.int64), 0
    rooms: list[int] = []  # rising, those that some row has left
    rows_with: dict[int, list[np.ndarray]] = {}

    def leave(left: int, rows: np.ndarray):
        if left not in rows_with:
            rows_with[left] = []
            bisect.insort(rooms, left)
        rows_with[left].append(rows)

    for size, (at, stop) in zip((-values).tolist(), itertools.pairwise([*first.tolist(), len(sizes)]), strict=True):
        while at < stop:
            fitting = bisect.bisect_left(rooms, size)
            if fitting == len(rooms):  # new rows
                each = room // size
                rows = np.arange(count, count - (at - stop) // each)
                count, full = count + len(rows), (stop - at) // each
                row[at:stop] = np.repeat(rows, each)[: stop - at]
                if full:
                    leave(room - each * size, rows[:full])
                if len(rows) > full:
                    leave(room - (stop - at - full * each) * size, rows[full:])
                break
            left = rooms[fitting]
            rows = rows_with[left].pop()
            if len(rows) > stop - at:
                rows_with[left].append(rows[stop - at :])
                rows = rows[: stop - at]
            if not rows_with[left]:
                del rows_with[left]
                rooms.pop(fitting)
            each = min(left // size, (stop - at) // len(rows))
            row[at : at + each * len(rows)] = np.repeat(rows, each)
            at += each * len(rows)
            leave(left - each * size, rows)
    found = np.empty_like(row)
    found[order] = row
    return found


def _running_rows(documents: Documents, order: np.ndarray, seq_len: int, places: np.ndarray):
    """Row and piece where documents run on in `order`.

    They are laid out as one stream, each with its <s> and </s>, in which legal cuts are positions. A row that begins
    inside a document needs an <s> of its own and takes one position less.
    """
    if not len(order):
        return np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    first = np.concatenate([[0], np.cumsum(documents.lengths[order] + 2)])  # of each document in the stream
    each = np.diff(documents.first_cut)[order]
    ends = np.cumsum(each)
    source = np.repeat(documents.first_cut[order] - ends + each, each) + np.arange(ends[-1])
    cuts = np.concatenate([[0], np.repeat(first[:-1], each) + 1 + documents.cuts[source]])
    cuts[ends] += 1  # with its </s>
    limit, has_items = _item_limits(documents, order, source, each, places)

    # Python's bisect is quick on a memoryview, and there are few rows to a cut.
    begins, at, tail, stops = memoryview(first), memoryview(cuts), int(seq_len * TAIL), [0]
    while stops[-1] < at[-1]:
        begin = stops[-1]
        k, document = bisect.bisect_right(at, begin) - 1, bisect.bisect_right(begins, begin) - 1
        end = begin + seq_len - (begins[document] != begin)
        fits = bisect.bisect_right(at, end) - 1
        if limit is not None:
            fits = min(fits, int(limit[k]))
        stop = at[fits]
        if stop < min(end - tail, at[-1]) and not (limit is not None and has_items[fits]):
            while _leaves_nothing(begins, end):
                end -= 1
            stop = max(stop, end)
        stops.append(stop)
    return _pieces_between(np.array(stops), first, order, documents.lengths)


def _item_limits(documents: Documents, order: np.ndarray, source: np.ndarray, each: np.ndarray, places: np.ndarray):
    """For each cut of a stream the last one that a row from there may reach, and whether an item follows the cut.

    None and None where there are no items.
    """
    if not documents.items.any():
        return None, None
    before = np.cumsum(np.concatenate([np.zeros((1, len(places)), np.int64), documents.counts[order]]), axis=0)
    items = np.repeat(before[:-1], each, axis=0) + documents.items[source]
    items = np.concatenate([np.zeros((1, len(places)), np.int64), items])
    limits = [np.searchsorted(n, n + most, "right") - 1 for n, most in zip(items.T, places, strict=True)]
    return np.minimum.reduce(limits), np.diff(items, axis=0).any(axis=1)


def _leaves_nothing(begins: memoryview, position: int) -> bool:
    """Whether a piece that ends at a position of the stream is <s> alone, or </s> all that follows it."""
    document = bisect.bisect_right(begins, position) - 1
    return position - begins[document] <= 1 or position == begins[document + 1] - 1


def _pieces_between(stops: np.ndarray, first: np.ndarray, order: np.ndarray, lengths: np.ndarray):
    """The pieces of the rows that lie between the stops of a stream."""
    edges = np.sort(np.concatenate([stops, first]), kind="stable")
    edges = edges[np.diff(edges, prepend=-1) > 0]
    begin, end = edges[:-1], edges[1:]
    row = np.searchsorted(stops, begin, "right") - 1
    k = np.searchsorted(first, begin, "right") - 1
    document = order[k]
    start = np.maximum(begin - first[k] - 1, 0)
    stop = np.minimum(end - first[k] - 1, lengths[document])
    return row, np.stack([document, start, stop], axis=1)


def bundles(items: np.ndarray, size: int, places: np.ndarray) -> np.ndarray:
    """Rows put together, `size` at a time, so that each bundle has about as many items and none more than `places`.

    Rows with many items are dealt first, each round to the bundles that have least.

    Args:
      items: int64[R, K], of each row; at most `places`.
      size: G.
      places: int64[K], of a bundle.

    Returns:
      int64[bundles, G], the rows; -1 where a bundle has fewer.
    """
    count = -(-len(items) // size)
    if not places.any() or not len(items):
        return np.concatenate([np.arange(len(items)), np.full(count * size - len(items), -1)]).reshape(count, size)
    load = items / np.maximum(places, 1)
    order = np.argsort(-load.max(axis=1), kind="stable")
    count = max(count, int(np.ceil(load.sum(axis=0).max() - 1e-9)))
    while True:
        found, held = np.full((count, size), -1), np.zeros((count, items.shape[1]))
        for round_, at in enumerate(range(0, len(order), count)):
            rows = order[at : at + count]
            emptiest = np.argsort(held.max(axis=1), kind="stable")[: len(rows)]
            found[emptiest, round_] = rows
            held[emptiest] += load[rows]
        if held.max() <= 1 + 1e-9:
            return found
        count = min(len(items), count + max(1, count // 64))
