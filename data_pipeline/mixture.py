"""The global batch of step N as a pure function of (config, seed, N).

Every step holds the same number of rows of each source, in the same places. The rows of a source are sampled without
replacement: draw g of a source is row shuffled(g mod R) of its plan of R rows, in the order of epoch g // R. So nothing
has to be remembered between steps, and any process can compute any row.
"""

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.documents import DataError, RecordError, RowError
from data_pipeline.index import load_index
from data_pipeline.media import DRAWS, host
from data_pipeline.plan import RowPlan, load_plan
from data_pipeline.rows import Piece, assemble
from data_pipeline.shuffle import philox, shuffled
from data_pipeline.sources import Source, make_source
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.modality import Table, modalities

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Member:
    """One source of the mixture with its plan and its share of a microbatch.

    `per_row` is the room for items in a row and `augment` the options of their transform, by modality.
    """

    source: Source
    plan: RowPlan
    rows: int
    per_row: dict[str, int]
    augment: dict[str, dict[str, Any]]


class Mixture:
    """Rows of several sources in fixed shares.

    Attributes:
      modalities: of the model, in order.
      names: the sources in the order in which `row_source` counts them: by name.
      rows: B, rows in a microbatch.
      items: N, places for items in a microbatch, by modality: the sum of its rows' `per_row`, raised to a multiple of
        `data_shards` and at least one.
      arrays: shapes and dtypes of a global batch, see `Layout`.
      row_source: int32[B], the source of each row; the sources are spread evenly over the rows.
      skipped: records that could not be read when the sources were indexed, or that their rows cannot hold, by
        "source/kind".

    Raises:
      DataError: a source with a positive share would get no row, or `batch_rows` does not divide.
      DataError: more than `data.max_skipped` records were skipped.
    """

    def __init__(self, config: Any, tokenizer: Tokenizer, split: str, cache: str | Path, data_shards: int = 1):
        """Reads or makes the index and the row plan of every source.

        Args:
          config: the complete config.
          tokenizer: with the model's modalities.
          split: "train", "validation" or "test".
          cache: folder of indexes and row plans.
          data_shards: devices that split N.
        """
        data, cache = config.data, Path(cache)
        self.config, self.tokenizer, self.split = config, tokenizer, split
        self.modalities = {modality.name: modality for modality in tokenizer.modalities}
        if tokenizer.modalities != modalities(config.model):
            raise DataError(f"the tokenizer has {tokenizer.modalities}, the model {modalities(config.model)}")
        self._seed, self._seq_len, self._isolate = config.seed, data.seq_len, data.isolate_documents
        self.microbatches = config.training.microbatches
        self.names, self.rows, counts, self.items, self.arrays = batch_layout(config, data_shards)
        self._table = Table(self.modalities.values(), self.items)
        self.skipped, self._members = collections.Counter(), []
        for name, count in zip(self.names, counts, strict=True):
            member = data.sources[name]
            per_row = {kind: member.per_row.get(kind, 0) for kind in self.modalities}
            source = make_source(member, split)
            index = load_index(source, tokenizer, cache, f"{name}-{split}")
            plan = load_plan(index, data.seq_len, list(per_row.values()), cache)
            skipped, last = dict(index.skipped), index.last_skipped
            if len(plan.skipped):
                error = RowError(source[int(plan.skipped[-1])].where, plan.why)
                skipped[error.kind], last = len(plan.skipped), str(error)
            if skipped:
                self.skipped.update({f"{name}/{kind}": n for kind, n in skipped.items()})
                log.warning("%s: %s records cannot be read, the last: %s", name, skipped, last)
            if self.skipped.total() > data.max_skipped:
                raise DataError(too_many_skipped(self.skipped, data.max_skipped, last))
            if not len(plan):
                raise DataError(f"data.sources.{name}: no document in split {split!r}")
            augment = {kind: dict(options) for kind, options in member.get("augment", {}).items()}
            self._members.append(_Member(source, plan, count, per_row, augment))

        self.row_source = spread(counts)
        self._first_items = {}  # of each row and, last, of the row after them
        for kind in self.modalities:
            places = np.array([member.per_row[kind] for member in self._members])[self.row_source]
            self._first_items[kind] = np.concatenate([[0], np.cumsum(places)])
        self._seen_before = [np.cumsum(self.row_source == s) - (self.row_source == s) for s in range(len(self.names))]

    @property
    def fingerprint(self) -> str:
        """Changes when a step's batch would: with the sources, the tokenizer, the packing or the shares."""
        parts = [self.tokenizer.fingerprint, self._seed, self._isolate, self.microbatches, self._seq_len]
        parts += [tuple(self.modalities.values())]
        for m in self._members:
            augment = sorted((kind, sorted(options.items())) for kind, options in m.augment.items())
            parts += [(m.source.fingerprint, m.rows, m.per_row, augment, m.plan.skipped.tolist())]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def summary(self) -> list[str]:
        """A line for each source and one for all together, for the log."""
        lines = []
        for name, m in zip(self.names, self._members, strict=True):
            fills = [f"{kind} fill {fill:.3f}" for kind, fill in self._item_fill(m).items() if m.per_row[kind]]
            rows = f"{m.rows} of the {self.rows} rows of a microbatch, {len(m.plan):,} rows an epoch"
            fills = ", ".join([f"text fill {m.plan.fill:.3f}", *fills])
            lines.append(f"{name}: {len(m.source):,} documents, {rows}, {fills}")
        fills = [f"{kind} fill {fill:.3f}" for kind, fill in self.item_fill().items()]
        lines.append("all: " + ", ".join([f"text fill {self.plan_fill():.3f}", *fills]))
        return lines

    def plan_fill(self) -> float:
        """Share of text positions that hold a token, on average over the steps."""
        return float(np.average([m.plan.fill for m in self._members], weights=[m.rows for m in self._members]))

    def item_fill(self) -> dict[str, float]:
        """Share of the places for items that hold one, on average over the steps, by modality."""
        used = collections.Counter()
        for m in self._members:
            used.update({kind: fill * m.per_row[kind] * m.rows for kind, fill in self._item_fill(m).items()})
        return {kind: float(used[kind] / places) for kind, places in self.items.items()}

    def _item_fill(self, member: _Member) -> dict[str, float]:
        return dict(zip(self.modalities, member.plan.item_fill, strict=True))

    def epoch(self, step: int) -> dict[str, float]:
        """How often each source has been seen when step `step` begins."""
        return {
            name: step * self.microbatches * member.rows / len(member.plan)
            for name, member in zip(self.names, self._members, strict=True)
        }

    def batch(
        self, step: int, rows: slice = slice(None), items: Mapping[str, slice] | None = None
    ) -> tuple[dict, dict]:
        """The batch of a step, or the part of it that one process holds.

        Args:
          step: from 0.
          rows: which of the B rows of every microbatch.
          items: which of the N places for items of every microbatch, by modality; all of one that is not named.

        Returns:
          arrays: int32[A, rows, T] tokens, targets, segment_ids, positions, slots; int32[A, rows] row_source;
            media: by modality [A, items, *shape].
          stats: text_fill and item_fill of this part, and `skipped`: a list of (source, kind, where, message).
        """
        rows = range(self.rows)[rows]
        here = {kind: range(n)[(items or {}).get(kind, slice(None))] for kind, n in self.items.items()}
        media = {
            kind: np.zeros((self.microbatches, len(here[kind]), *modality.shape), modality.dtype)
            for kind, modality in self.modalities.items()
        }
        parts, skipped, used = collections.defaultdict(list), [], dict.fromkeys(here, 0)
        for a in range(self.microbatches):
            for row in range(self.rows):
                shown = {
                    kind: _overlap(self._first_items[kind][row : row + 2], places) for kind, places in here.items()
                }
                if row not in rows and not any(shown.values()):
                    continue
                arrays, row_media, troubles = self._row(step, a, row)
                for kind, places in shown.items():
                    for place, item in zip(
                        places, row_media[kind][places.start - self._first_items[kind][row] :], strict=False
                    ):
                        media[kind][a, place - here[kind].start] = item
                        used[kind] += 1
                if row in rows:
                    skipped += troubles
                    for name, value in arrays.items():
                        parts[name].append(value)
        shape = (self.microbatches, len(rows), -1)
        arrays = {name: np.stack(values).reshape(shape) for name, values in parts.items()}
        arrays["row_source"] = np.tile(self.row_source[rows.start : rows.stop], (self.microbatches, 1))
        arrays["media"] = media
        stats = {
            "text_fill": float((arrays["segment_ids"] > 0).mean()),
            "item_fill": {kind: n / max(1, self.microbatches * len(here[kind])) for kind, n in used.items()},
            "skipped": skipped,
        }
        return arrays, stats

    def _row(self, step: int, a: int, row: int) -> tuple[dict, dict[str, list[np.ndarray]], list]:
        """Row `row` of microbatch `a`: its arrays, all its items, and the records in it that could not be read."""
        s = int(self.row_source[row])
        member, name = self._members[s], self.names[s]
        draw = (step * self.microbatches + a) * member.rows + int(self._seen_before[s][row])
        epoch, i = divmod(draw, len(member.plan))
        planned = shuffled(i, len(member.plan), (self._seed, s, epoch))
        pieces, row_media, troubles = [], {kind: [] for kind in self.modalities}, []
        draws = iter(philox((self._seed, s, draw)).random((sum(member.per_row.values()), DRAWS)))
        for document, start, stop in member.plan.row(planned):
            try:
                piece, items = self._piece(member, document, start, stop, draws)
                pieces.append(piece)
                for kind, item in items:
                    row_media[kind].append(item)
            except RecordError as error:
                pieces.append(None)
                troubles.append((name, error.kind, error.where, str(error)))
        first_items = {kind: int(first[row]) for kind, first in self._first_items.items()}
        arrays = assemble(pieces, self._seq_len, self.tokenizer, self._table, self._isolate, first_items)
        return arrays, row_media, troubles

    def _piece(self, member: _Member, i: int, start: int, stop: int, draws: Iterator[np.ndarray]):
        document = member.source[i]
        piece = Piece(self.tokenizer.encode_document(document.parts), start, stop)
        if stop > len(piece.encoded.tokens):
            raise RecordError(document.where, "is shorter than when it was indexed: remove the cache directory")
        items = zip(piece.items, piece.media, strict=True)
        decoded = [(kind, host(kind).decode(data, f"{document.where} {kind} {n}")) for n, (kind, data) in items]
        if self.split != "train":
            return piece, [(kind, host(kind).item(item, self.modalities[kind].shape)) for kind, item in decoded]
        return piece, [
            (kind, host(kind).item(item, self.modalities[kind].shape, next(draws), **member.augment.get(kind, {})))
            for kind, item in decoded
        ]


def _overlap(bounds: np.ndarray, places: range) -> range:
    """Of the places from bounds[0] up to bounds[1], those that are among `places`; an empty range has length 0."""
    return range(max(int(bounds[0]), places.start), min(int(bounds[1]), places.stop))


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array that is not there yet."""

    shape: tuple[int, ...]
    dtype: str


class Layout(NamedTuple):
    """What a batch is like; it follows from the config alone.

    Attributes:
      names: the sources, by name.
      rows: of a microbatch.
      counts: rows of each source in a microbatch.
      items: places for items in a microbatch, a multiple of the data shards, by modality.
      arrays: a `Spec` for each array of a global batch, those of items one level deeper: {"media": {name: ...}}.
    """

    names: tuple[str, ...]
    rows: int
    counts: list[int]
    items: dict[str, int]
    arrays: dict[str, Any]


def batch_layout(config: Any, data_shards: int = 1) -> Layout:
    """The layout of the batches of a complete config; nothing is opened.

    Raises:
      DataError: rows cannot be divided over microbatches and devices, or a source gets none.
    """
    sources, microbatches = config.data.sources, config.training.microbatches
    names = tuple(sorted(sources))
    rows = _microbatch_rows(config.data.batch_rows, microbatches, data_shards)
    counts = row_counts({name: sources[name].share for name in names}, rows, microbatches)
    items, media = {}, {}
    for modality in modalities(config.model):
        places = sum(n * sources[name].per_row.get(modality.name, 0) for name, n in zip(names, counts, strict=True))
        items[modality.name] = -(-max(1, places) // data_shards) * data_shards
        media[modality.name] = Spec((microbatches, items[modality.name], *modality.shape), modality.dtype)
    text = Spec((microbatches, rows, config.data.seq_len), "int32")
    arrays = dict.fromkeys(("tokens", "targets", "segment_ids", "positions", "slots"), text)
    arrays |= {"row_source": Spec((microbatches, rows), "int32"), "media": media}
    return Layout(names, rows, counts, items, arrays)


def _microbatch_rows(batch_rows: int, microbatches: int, data_shards: int) -> int:
    unit = microbatches * data_shards
    if batch_rows % unit or batch_rows < 1:
        good = max(1, round(batch_rows / unit)) * unit
        raise DataError(
            f"data.batch_rows is {batch_rows}, which does not divide over training.microbatches={microbatches} and "
            f"{data_shards} data shards; try {good}"
        )
    return batch_rows // microbatches


def row_counts(shares: dict[str, float], rows: int, microbatches: int = 1) -> list[int]:
    """Rows of each source in a microbatch of `rows`, by largest remainder.

    Args:
      shares: of each source, in proportion.
      rows: of a microbatch.
      microbatches: for the message alone.

    Raises:
      DataError: a positive share gets no row; names the least `data.batch_rows` above that gives every source one.
    """
    counts = _largest_remainder(list(shares.values()), rows)
    if starved := [name for (name, share), n in zip(shares.items(), counts, strict=True) if share > 0 and n == 0]:
        good = rows
        while 0 in _largest_remainder([share for share in shares.values() if share > 0], good):
            good += 1
        raise DataError(
            f"data.sources.{starved[0]}.share is {shares[starved[0]]:g}, less than one of the {rows} rows of a "
            f"microbatch; raise it, or set data.batch_rows to {good * microbatches}"
        )
    return counts


def _largest_remainder(shares: list[float], rows: int) -> list[int]:
    exact = np.array(shares, float) / sum(shares) * rows
    counts = np.floor(exact + 1e-9).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: rows - counts.sum()]:
        counts[i] += 1
    return counts.tolist()


def spread(counts: list[int]) -> np.ndarray:
    """int32[sum(counts)]: i counts[i] times, as evenly as Bresenham's line: [2, 4] gives 1 0 1 1 0 1."""
    source = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n] or [np.zeros(0)])
    return source[np.lexsort((source, place))]


def too_many_skipped(skipped: dict[str, int], limit: int, last: str) -> str:
    counts = ", ".join(f"{name}: {n}" for name, n in sorted(skipped.items()))
    return f"{sum(skipped.values())} records cannot be read ({counts}), data.max_skipped is {limit}. The last: {last}"
