"""What a batch is like: how many rows each source has, where they stand, and where their items lie.

It follows from the config alone; nothing is opened.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.documents import DataError
from kosmos_jax.modality import modalities

# Of a row of the pool; and how many rows have every share of the pool's sources to a ten-thousandth.
POOL, PERIOD = -1, 10_000


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array that is not there yet."""

    shape: tuple[int, ...]
    dtype: str


class Phase(NamedTuple):
    """Steps with the same shares.

    Attributes:
      first_step: of the phase.
      source: int64[bundles], the source of each bundle of a microbatch, in order; `POOL` for one of text.
      bundles: int64[S], of each source in a microbatch; 0 of those in the pool.
      pattern: int64[PERIOD], the sources of the pool's rows, over and over.
      first_row: int64[bundles + 1].
      first_item: by modality, int64[bundles + 1].
    """

    first_step: int
    source: np.ndarray
    bundles: np.ndarray
    pattern: np.ndarray
    first_row: np.ndarray
    first_item: dict[str, np.ndarray]

    def drawn(self, microbatches: int) -> np.ndarray:
        """int64[S]: how many bundles of each source so many microbatches of the phase have."""
        rounds, rest = divmod(microbatches * int((self.source == POOL).sum()), PERIOD)
        counts = [np.bincount(part, minlength=len(self.bundles)) for part in (self.pattern, self.pattern[:rest])]
        return microbatches * self.bundles + rounds * counts[0] + counts[1]


class Layout(NamedTuple):
    """Where everything lies in a batch.

    Sources without places for items share a pool of rows: of eleven corpora of text the smallest may have a row in
    three steps. All others have the same number of rows, in the same places, in every step of a phase.

    Attributes:
      names: the sources, by name.
      rows: B, of a microbatch.
      size: G, rows of a bundle, of each source.
      places: of each source, places for items in a bundle, by modality in the model's order.
      phases: by their first step; the first of them begins at 0.
      items: N, places for items in a microbatch, a multiple of the data shards, by modality.
      arrays: a `Spec` for each array of a global batch, those of items one level deeper: {"media": {name: ...}}.
      microbatches: A.
    """

    names: tuple[str, ...]
    rows: int
    size: list[int]
    places: list[tuple[int, ...]]
    phases: list[Phase]
    items: dict[str, int]
    arrays: dict[str, Any]
    microbatches: int

    def drawn(self, step: int) -> np.ndarray:
        """int64[S]: the bundles of each source in all steps before one."""
        ends = [*(phase.first_step for phase in self.phases[1:]), math.inf]
        steps = [max(0, min(step, end) - phase.first_step) for phase, end in zip(self.phases, ends, strict=True)]
        return sum(phase.drawn(n * self.microbatches) for n, phase in zip(steps, self.phases, strict=True))

    def draws(self, step: int, a: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of every bundle of a microbatch, and the number of its draw from that source.

        Args:
          step: from 0.
          a: the microbatch.
        """
        phase = self.phase(step)
        done = (step - phase.first_step) * self.microbatches + a
        source, pool = phase.source.copy(), phase.source == POOL
        rows = np.arange(pool.sum()) + done * pool.sum()
        source[pool] = phase.pattern[rows % PERIOD]
        draw, before = np.zeros(len(source), np.int64), self.drawn(phase.first_step) + phase.drawn(done)
        for s in np.unique(source).tolist():
            own = source == s
            draw[own] = before[s] + np.arange(own.sum())
        return source, draw

    def row_source(self, step: int) -> np.ndarray:
        """int32[A, B], the source of each row of a step."""
        sizes = np.diff(self.phase(step).first_row)
        each = [np.repeat(self.draws(step, a)[0], sizes) for a in range(self.microbatches)]
        return np.stack(each).astype(np.int32)

    def phase(self, step: int) -> Phase:
        """The phase that a step is in."""
        return [phase for phase in self.phases if phase.first_step <= step][-1]


def batch_layout(config: Any, data_shards: int = 1) -> Layout:
    """The layout of the batches of a complete config.

    Args:
      config: the complete config.
      data_shards: devices that split rows and items.

    Raises:
      DataError: rows cannot be divided over microbatches and devices, or a source gets none.
    """
    sources, microbatches, found = config.data.sources, config.training.microbatches, modalities(config.model)
    names, kinds = tuple(sorted(sources)), [modality.name for modality in found]
    rows = _microbatch_rows(config.data.batch_rows, microbatches, data_shards)
    schedules = [share_schedule(sources[name].share) for name in names]
    per_row = [[sources[name].per_row.get(kind, 0) for kind in kinds] for name in names]
    pooled = [not any(each) for each in per_row]
    steps = sorted({step for schedule in schedules for step, _ in schedule})
    shares = [{name: _share(each, step) for name, each in zip(names, schedules, strict=True)} for step in steps]
    counts = [_counts(each, pooled, rows, microbatches) for each in shares]
    size, places = [], []
    for own, each, in_pool in zip(np.array(counts)[:, :-1].T.tolist(), per_row, pooled, strict=True):
        size.append(1 if in_pool else _bundle_rows(own, config.data.bundle_rows))
        places.append(tuple(max(math.floor(size[-1] * n), math.ceil(n > 0)) for n in each))
    phases = [
        _phase(step, np.array(own), [share * in_pool for share, in_pool in zip(each.values(), pooled, strict=True)],
               size, places, kinds)
        for step, own, each in zip(steps, counts, shares, strict=True)
    ]  # fmt: skip
    items, media = {}, {}
    for modality in found:
        most = max(int(phase.first_item[modality.name][-1]) for phase in phases)
        items[modality.name] = -(-max(1, most) // data_shards) * data_shards
        media[modality.name] = Spec((microbatches, items[modality.name], *modality.shape), modality.dtype)
    text = Spec((microbatches, rows, config.data.seq_len), "int32")
    arrays = dict.fromkeys(("tokens", "targets", "segment_ids", "positions", "slots"), text)
    arrays |= {"row_source": Spec((microbatches, rows), "int32"), "media": media}
    return Layout(names, rows, size, places, phases, items, arrays, microbatches)


def share_schedule(share) -> list[tuple[int, float]]:
    """A share, or the shares from certain steps on, as [(0, share), ...]: ((0, 0.5), (10_000, 0.2))."""
    return [(0, share)] if isinstance(share, int | float) else [(int(step), float(value)) for step, value in share]


def _share(schedule: list[tuple[int, float]], step: int) -> float:
    return [share for first, share in schedule if first <= step][-1]


def _bundle_rows(counts: Iterable[int], most: int) -> int:
    """The largest number of rows up to `most` that divides a source's rows in every phase."""
    together = math.gcd(*counts)
    return max(n for n in range(1, most + 1) if together % n == 0)


def _counts(shares: dict[str, float], pooled: list[bool], rows: int, microbatches: int) -> list[int]:
    """Rows of each source in a microbatch, 0 of those in the pool, and then the pool's.

    Raises:
      DataError: as `row_counts`.
    """
    each = {name: share for (name, share), in_pool in zip(shares.items(), pooled, strict=True) if not in_pool}
    pool = [name for name, in_pool in zip(shares, pooled, strict=True) if in_pool]
    if pool:
        # By the name of one of them, for the message.
        each[max(pool, key=shares.get)] = sum(shares[name] for name in pool)
    counts = dict(zip(each, row_counts(each, rows, microbatches), strict=True))
    own = [0 if in_pool else counts[name] for name, in_pool in zip(shares, pooled, strict=True)]
    return [*own, rows - sum(own)]


def _phase(step: int, rows: np.ndarray, pool: list[float], size: list[int], places, kinds: list[str]) -> Phase:
    bundles = rows[:-1] // size
    source = spread([*bundles, rows[-1]])
    source[source == len(size)] = POOL
    sizes, room = np.array([*size, 1])[source], np.array([*places, (0,) * len(kinds)], np.int64)
    first_item = {kind: np.concatenate([[0], np.cumsum(room[source, k])]) for k, kind in enumerate(kinds)}
    counts = _largest_remainder(pool, PERIOD) if any(pool) else [PERIOD]
    first_row = np.concatenate([[0], np.cumsum(sizes)])
    return Phase(step, source, bundles, spread(counts), first_row, first_item)


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


def spread(counts) -> np.ndarray:
    """int64[sum(counts)]: i counts[i] times, as evenly as Bresenham's line: [2, 4] gives 1 0 1 1 0 1."""
    source = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n] or [np.zeros(0)])
    return source[np.lexsort((source, place))]
