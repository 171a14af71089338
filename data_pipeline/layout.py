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


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array that is not there yet."""

    shape: tuple[int, ...]
    dtype: str


class Phase(NamedTuple):
    """Steps with the same shares.

    Attributes:
      first_step: of the phase.
      bundles: int64[S], of each source in a microbatch.
      source: int64[bundles], the source of each bundle of a microbatch, in order.
      first_row: int64[bundles + 1].
      first_item: by modality, int64[bundles + 1].
    """

    first_step: int
    bundles: np.ndarray
    source: np.ndarray
    first_row: np.ndarray
    first_item: dict[str, np.ndarray]


class Layout(NamedTuple):
    """Attributes:
    names: the sources, by name.
    rows: B, of a microbatch.
    size: G, rows of a bundle, of each source.
    places: of each source, places for items in a bundle, by modality in the model's order.
    phases: by their first step; the first of them begins at 0.
    items: N, places for items in a microbatch, a multiple of the data shards, by modality.
    arrays: a `Spec` for each array of a global batch, those of items one level deeper: {"media": {name: ...}}.
    """

    names: tuple[str, ...]
    rows: int
    size: list[int]
    places: list[tuple[int, ...]]
    phases: list[Phase]
    items: dict[str, int]
    arrays: dict[str, Any]

    def bundles_before(self, step: int, microbatches: int) -> np.ndarray:
        """int64[S]: the bundles of each source in all steps before one."""
        ends = [phase.first_step for phase in self.phases[1:]] + [math.inf]
        steps = [max(0, min(step, end) - phase.first_step) for phase, end in zip(self.phases, ends, strict=True)]
        return sum(n * microbatches * phase.bundles for n, phase in zip(steps, self.phases, strict=True))

    def row_source(self, step: int) -> np.ndarray:
        """int32[B], the source of each row of a microbatch."""
        phase = self.phase(step)
        return np.repeat(phase.source, np.diff(phase.first_row)).astype(np.int32)

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
    names = tuple(sorted(sources))
    rows = _microbatch_rows(config.data.batch_rows, microbatches, data_shards)
    schedules = {name: share_schedule(sources[name].share) for name in names}
    steps = sorted({step for schedule in schedules.values() for step, _ in schedule})
    counts = [
        row_counts({name: _share(schedule, step) for name, schedule in schedules.items()}, rows, microbatches)
        for step in steps
    ]
    size, places = [], []
    for name, own in zip(names, np.array(counts).T.tolist(), strict=True):
        per_row = [sources[name].per_row.get(modality.name, 0) for modality in found]
        size.append(_bundle_rows(own, config.data.bundle_rows) if any(per_row) else 1)
        places.append(tuple(max(math.floor(size[-1] * n), math.ceil(n > 0)) for n in per_row))
    phases = [
        _phase(step, np.array(each) // size, size, places, [modality.name for modality in found])
        for step, each in zip(steps, counts, strict=True)
    ]
    items, media = {}, {}
    for modality in found:
        most = max(int(phase.first_item[modality.name][-1]) for phase in phases)
        items[modality.name] = -(-max(1, most) // data_shards) * data_shards
        media[modality.name] = Spec((microbatches, items[modality.name], *modality.shape), modality.dtype)
    text = Spec((microbatches, rows, config.data.seq_len), "int32")
    arrays = dict.fromkeys(("tokens", "targets", "segment_ids", "positions", "slots"), text)
    arrays |= {"row_source": Spec((microbatches, rows), "int32"), "media": media}
    return Layout(names, rows, size, places, phases, items, arrays)


def share_schedule(share) -> list[tuple[int, float]]:
    """A share, or the shares from certain steps on, as [(0, share), ...]: ((0, 0.5), (10_000, 0.2))."""
    return [(0, share)] if isinstance(share, int | float) else [(int(step), float(value)) for step, value in share]


def _share(schedule: list[tuple[int, float]], step: int) -> float:
    return [share for first, share in schedule if first <= step][-1]


def _bundle_rows(counts: Iterable[int], most: int) -> int:
    """The largest number of rows up to `most` that divides a source's rows in every phase."""
    together = math.gcd(*counts)
    return max(n for n in range(1, most + 1) if together % n == 0)


def _phase(step: int, bundles: np.ndarray, size: list[int], places: list[tuple[int, ...]], kinds: list[str]) -> Phase:
    source = spread(bundles)
    first_row = np.concatenate([[0], np.cumsum(np.array(size)[source])])
    first_item = {
        kind: np.concatenate([[0], np.cumsum(np.array([each[k] for each in places], np.int64)[source])])
        for k, kind in enumerate(kinds)
    }
    return Phase(step, bundles, source, first_row, first_item)


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
