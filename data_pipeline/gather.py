"""From bundles that were drawn to their pieces and items, in the order in which they stand in a microbatch."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.layout import Phase
from data_pipeline.rows import Pieces, spans
from data_pipeline.shards import Shard
from kosmos_jax.modality import Table


@dataclasses.dataclass
class Gathered:
    """Pieces and items of some rows of a microbatch, row by row.

    Attributes:
      row, segment: int64[P], where each piece stands; segments count from 1.
      source: int64[P].
      shard: int64[P], which of `shards`.
      document: int64[P], in its shard.
      start, stop: int64[P], offsets in the document's body.
      ends: bool[P], whether the document ends there.
      given: int64[S, 3], as in `rows.Pieces`.
      items: int64[M, 4]: a piece, the offset in it of the first slot, the item's index in the piece's shard, its kind.
      number: int64[M], the item's place in the microbatch, among those of its kind.
      draw: int64[M], the draw of its bundle; and within: its number in the bundle, among those of its kind.
      shards: those that anything comes from.
      kinds: what the kinds of `items` count.
    """

    row: np.ndarray
    segment: np.ndarray
    source: np.ndarray
    shard: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    ends: np.ndarray
    given: np.ndarray
    items: np.ndarray
    number: np.ndarray
    within: np.ndarray
    draw: np.ndarray
    shards: Sequence[Shard]
    kinds: Sequence[str]

    def wanted(self, rows: range, here: Mapping[str, range]) -> np.ndarray:
        """bool[M]: which items are in these rows, or have one of these places."""
        row = self.row[self.items[:, 0]]
        found = (row >= rows.start) & (row < rows.stop)
        for k, kind in enumerate(self.kinds):
            places = here[kind]
            found |= (self.items[:, 3] == k) & (self.number >= places.start) & (self.number < places.stop)
        return found

    def kind_of(self, m: int) -> str:
        return self.kinds[self.items[m, 3]]

    def item_source(self, m: int) -> tuple[Shard, int]:
        """The shard that has item m, and its index there."""
        return self.shards[self.shard[self.items[m, 0]]], int(self.items[m, 2])

    def name(self, m: int) -> str:
        """The name of the document of item m."""
        piece = self.items[m, 0]
        return self.shards[self.shard[piece]].name(int(self.document[piece]))

    def draw_of(self, m: int) -> tuple[int, int, int]:
        """Of item m its source, the draw of its bundle, and its number in it among those of its kind."""
        return int(self.source[self.items[m, 0]]), int(self.draw[m]), int(self.within[m])

    def pieces(self, rows: range, without: Sequence[int], table: Table) -> Pieces:
        """The pieces in these rows, but some, ready to be laid out.

        Args:
          rows: of the microbatch; the first of them becomes row 0.
          without: pieces that cannot be used.
          table: where the vectors of the microbatch's items lie.
        """
        kept = (self.row >= rows.start) & (self.row < rows.stop)
        kept[list(without)] = False
        renumbered = np.cumsum(kept) - 1
        first = np.array([table.first[kind] for kind in self.kinds], np.int64)
        counts = np.array([table.tokens[kind] for kind in self.kinds], np.int64)
        items, given = kept[self.items[:, 0]], kept[self.given[:, 0]]
        piece, offset, _, kind = self.items[items].T
        slot = first[kind] + self.number[items] * counts[kind]
        return Pieces(
            row=self.row[kept] - rows.start,
            segment=self.segment[kept],
            tokens=self._bodies(np.flatnonzero(kept)),
            length=(self.stop - self.start)[kept],
            ends=self.ends[kept],
            given=np.column_stack([renumbered[self.given[given, 0]], self.given[given, 1:]]),
            items=np.column_stack([renumbered[piece], offset, counts[kind], slot]),
        )

    def _bodies(self, pieces: np.ndarray) -> list[np.ndarray]:
        shards, documents = self.shard[pieces].tolist(), self.document[pieces].tolist()
        first = np.array([self.shards[s].first[d] for s, d in zip(shards, documents, strict=True)], np.int64)
        begin, end = (first + self.start[pieces]).tolist(), (first + self.stop[pieces]).tolist()
        return [self.shards[s].tokens[a:b] for s, a, b in zip(shards, begin, end, strict=True)]


def gather(bundles: Sequence[tuple], phase: Phase) -> Gathered:
    """What the bundles of a microbatch hold.

    Args:
      bundles: of each source (its number, its plan, int64[n] of the microbatch's bundles, their draws, and the block
        and the bundle in the block that were drawn).
      phase: where bundles lie.
    """
    kinds = bundles[0][1].kinds if bundles else ()
    parts, shards, draws = [], [], np.zeros(len(phase.source), np.int64)
    for source, plan, places, own_draws, blocks, drawn in bundles:
        draws[places] = own_draws
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            block_plan = plan.block(block)
            for shard, first, stop in plan.shards(block):
                part = _of_shard(block_plan, plan.size, drawn[mine], phase.first_row[places[mine]], shard, first, stop)
                if part:
                    parts.append((source, len(shards), *part))
                    shards.append(shard)
    return _in_order(parts, shards, kinds, phase, draws)


def _of_shard(plan, size: int, bundles: np.ndarray, first_rows: np.ndarray, shard: Shard, first: int, stop: int):
    """The pieces in some bundles of a block that come from one of its shards, the documents first:stop of the block."""
    rows = (bundles[:, None] * size + np.arange(size)).ravel()
    begins = plan["first"][rows]
    sizes = plan["first"][rows + 1] - begins
    pieces = plan["pieces"][spans(begins, sizes)]
    row = np.repeat((first_rows[:, None] + np.arange(size)).ravel(), sizes)
    segment = spans(np.ones(len(sizes), np.int64), sizes)
    mine = (pieces[:, 0] >= first) & (pieces[:, 0] < stop)
    if not mine.any():
        return None
    document, start, end = pieces[mine].astype(np.int64).T
    document = document - first
    ends = end == shard.first[document + 1] - shard.first[document]
    return row[mine], segment[mine], document, start, end, ends


def _in_order(parts: Sequence[tuple], shards, kinds, phase: Phase, draws: np.ndarray) -> Gathered:
    columns = [np.concatenate([np.zeros(0, np.int64), *(part[i] for part in parts)]) for i in range(2, 8)]
    lengths = [len(part[2]) for part in parts]
    source, shard = (np.repeat([part[i] for part in parts] or [0], lengths or [0]).astype(np.int64) for i in (0, 1))
    order = np.lexsort((columns[1], columns[0]))
    row, segment, document, start, stop, ends = (column[order] for column in columns)
    source, shard, ends = source[order], shard[order], ends.astype(bool)
    given, items = [np.zeros((0, 3), np.int64)], [np.zeros((0, 4), np.int64)]
    for number, each in enumerate(shards):
        pieces = np.flatnonzero(shard == number)
        of_shard = (each, pieces, document[pieces], start[pieces], stop[pieces])
        given.append(_given(*of_shard, ends[pieces]))
        items.append(_items(*of_shard, kinds))
    given, items = np.concatenate(given), np.concatenate(items)
    items = items[np.lexsort((items[:, 1], items[:, 0]))]

    bundle = np.searchsorted(phase.first_row, row[items[:, 0]], "right") - 1
    number, within = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
    for k, kind in enumerate(kinds):
        own = np.flatnonzero(items[:, 3] == k)
        within[own] = np.arange(len(own)) - np.searchsorted(bundle[own], bundle[own])
        number[own] = phase.first_item[kind][bundle[own]] + within[own]
    return Gathered(
        *(row, segment, source, shard, document, start, stop, ends),
        *(given, items, number, within, draws[bundle], shards, kinds),
    )


def _items(shard: Shard, pieces, document, start, stop, kinds) -> np.ndarray:
    """int64[M, 4]: of each item in the pieces the piece, the offset of its first slot in it, its index, its kind."""
    begins = shard.first_item[document]
    sizes = shard.first_item[document + 1] - begins
    index, owner = spans(begins, sizes), np.repeat(np.arange(len(pieces)), sizes)
    at = shard.starts[index]
    inside = (at >= start[owner]) & (at < stop[owner])
    index, owner = index[inside], owner[inside]
    kind_of = np.array([kinds.index(name) if name in kinds else -1 for name in shard.modalities] or [0])
    return np.column_stack([pieces[owner], at[inside] - start[owner], index, kind_of[shard.kinds[index]]])


def _given(shard: Shard, pieces, document, start, stop, ends) -> np.ndarray:
    """int64[S, 3]: of each given text in the pieces the piece, and where it starts and stops in it."""
    begins = shard.first_given[document]
    sizes = shard.first_given[document + 1] - begins
    index, owner = spans(begins, sizes), np.repeat(np.arange(len(pieces)), sizes)
    # </s> follows the last piece, and can be given too.
    low = np.maximum(shard.given[index, 0], start[owner]) - start[owner]
    high = np.minimum(shard.given[index, 1], (stop + ends)[owner]) - start[owner]
    inside = low < high
    return np.column_stack([pieces[owner], low, high])[inside]
