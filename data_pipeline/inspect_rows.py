"""Packed rows of a batch, taken apart again for people who look at them."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipeline.documents import DataError


class Item(NamedTuple):
    """An item of media as the model gets it: an array of the batch, in the place of `count` tokens."""

    kind: str
    count: int
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Segment:
    """A document in a row, or a piece of one, with its <s> and </s>.

    Attributes:
      name: of the document.
      start, stop, length: the piece is the tokens start:stop of the `length` of the document's body.
      tokens: int32[n].
      learned: bool[n], which of them the model learns to write.
      items: by the offset of their first slot, in order.
    """

    name: str
    start: int
    stop: int
    length: int
    tokens: np.ndarray
    learned: np.ndarray
    items: dict[int, Item]

    def parts(self) -> Iterator[tuple[int, Item | None]]:
        """Offsets of tokens, each with the item whose slots begin there; other slots are left out."""
        at = 0
        while at < len(self.tokens):
            item = self.items.get(at)
            yield at, item
            at += item.count if item else 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a batch.

    Attributes:
      source: which of the mixture's.
      microbatch, number: where it stands.
      seq_len: T.
      segments: what it holds, in order; padding follows.
      left_out: messages on documents that are missing, as an item of theirs cannot be read any more.
    """

    source: int
    microbatch: int
    number: int
    seq_len: int
    segments: tuple[Segment, ...]
    left_out: tuple[str, ...]

    @property
    def used(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments)

    @property
    def learned(self) -> int:
        return sum(int(segment.learned.sum()) for segment in self.segments)

    @property
    def items(self) -> list[Item]:
        return [item for segment in self.segments for item in segment.items.values()]


def hue(mixture, source: int) -> int:
    """Of the colour of a source, from 0 to 359."""
    return round(210 + 360 * source / len(mixture.names)) % 360


def packed_rows(mixture, step: int, most: int) -> list[Row]:
    """The first rows of each source in a batch; nothing is read that they do not hold.

    Args:
      mixture: a `Mixture`.
      step: whose batch.
      most: so many rows of each source.

    Raises:
      DataError: there is no such step, or nothing to show.
    """
    if step < 0 or most < 1:
        raise DataError(f"step is {step}, rows {most}: steps count from 0, and at least 1 row of each source is shown")
    source = mixture.layout.row_source(step)
    places = [np.argwhere(source == s)[:most].tolist() for s in range(len(mixture.names))]
    return [_row(mixture, step, s, a, row) for s, own in enumerate(places) for a, row in own]


def _row(mixture, step: int, s: int, a: int, row: int) -> Row:
    gathered = mixture.gather(step, a, range(row, row + 1), {kind: range(0) for kind in mixture.items})
    mine = np.flatnonzero(gathered.row == row)
    own = np.flatnonzero(np.isin(gathered.items[:, 0], mine))
    places = {kind: slice(0, 0) for kind in mixture.items}
    for kind in {gathered.kind_of(m) for m in own.tolist()}:
        numbers = [int(gathered.number[m]) for m in own.tolist() if gathered.kind_of(m) == kind]
        places[kind] = slice(min(numbers), max(numbers) + 1)
    arrays, stats = mixture.batch(step, slice(row, row + 1), places)

    messages = {where: message for _, _, where, message in stats["skipped"]}
    bad = {}
    for m in own.tolist():
        if (where := f"{gathered.name(m)} {gathered.kind_of(m)}") in messages:
            bad[int(gathered.items[m, 0])] = messages[where]
    pieces = [piece for piece in mine.tolist() if piece not in bad]
    tokens, targets, segments, slots = (arrays[key][a, 0] for key in ("tokens", "targets", "segment_ids", "slots"))
    learned = np.concatenate([[False], targets[:-1] >= 0])
    items = dict(_items(mixture, slots, places, {kind: media[a] for kind, media in arrays["media"].items()}))
    used = int((segments > 0).sum())
    # Not by `segments`: rows whose documents are not isolated have one. No text gives a <s>.
    begins = np.flatnonzero(tokens[:used] == mixture.tokenizer.bos).tolist()
    found = []
    for piece, begin, end in zip(pieces, begins, [*begins[1:], used], strict=True):
        shard, document = gathered.shards[gathered.shard[piece]], int(gathered.document[piece])
        found.append(
            Segment(
                name=shard.name(document),
                start=int(gathered.start[piece]),
                stop=int(gathered.stop[piece]),
                length=int(shard.first[document + 1] - shard.first[document]),
                tokens=tokens[begin:end],
                learned=learned[begin:end],
                items={at - begin: item for at, item in items.items() if begin <= at < end},
            )
        )
    return Row(s, a, row, len(tokens), tuple(found), tuple(bad.values()))


def _items(mixture, slots: np.ndarray, places, media) -> Iterator[tuple[int, Item]]:
    for kind, first in mixture.table.first.items():
        count = mixture.table.tokens[kind]
        own = (slots >= first) & (slots < first + count * mixture.items[kind]) & ((slots - first) % count == 0)
        for at in np.flatnonzero(own).tolist():
            number = (int(slots[at]) - first) // count
            yield at, Item(kind, count, media[kind][number - places[kind].start])
