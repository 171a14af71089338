"""The global batch of step N as a pure function of (config, seed, N).

Every step holds the same number of rows of each source, in the same places. The rows of a source are drawn in bundles,
without replacement: draw g of a source is bundle g mod R of its R bundles, in the order of epoch g // R. So nothing has
to be remembered between steps, and any process can compute any part.
"""

import collections
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.documents import Absent, DataError, RecordError
from data_pipeline.gather import Gathered, gather
from data_pipeline.layout import PERIOD, batch_layout
from data_pipeline.media import DRAWS, host
from data_pipeline.plan import Plan
from data_pipeline.prepare.job import too_many_skipped
from data_pipeline.prepare.sources import prepared
from data_pipeline.rows import assemble
from data_pipeline.shuffle import Order, philox
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.modality import Table, modalities

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """One source of the mixture: its plan, the order of its bundles, and the options of its media's transforms."""

    plan: Plan
    order: Order
    augment: dict[str, dict[str, Any]]


class Mixture:
    """Rows of several sources in fixed shares.

    Attributes:
      modalities: of the model, in order.
      layout: where everything lies in a batch.
      names: the sources in the order in which `row_source` counts them: by name.
      rows: B, rows in a microbatch.
      items: N, places for items in a microbatch, by modality.
      arrays: shapes and dtypes of a global batch, see `Layout`.
      table: where the vectors of a microbatch's items lie.
      members: the sources, in the order of `names`.
      skipped: records that could not be read when the sources were prepared, by "source/kind".

    Raises:
      DataError: a source with a positive share would get no row, or `batch_rows` does not divide.
      DataError: more than `data.max_skipped` records were skipped.
      DataError: a source is not prepared, and too large to be on the way.
    """

    def __init__(self, config: Any, tokenizer: Tokenizer, split: str, cache: str | Path, data_shards: int = 1):
        """Opens what is prepared, and prepares and plans what is not.

        Args:
          config: the complete config.
          tokenizer: with the model's modalities.
          split: "train", "validation" or "test".
          cache: folder of prepared sources and plans.
          data_shards: devices that split N.
        """
        data, cache = config.data, Path(cache)
        self.config, self.tokenizer, self.split = config, tokenizer, split
        self.modalities = {modality.name: modality for modality in tokenizer.modalities}
        if tokenizer.modalities != modalities(config.model):
            raise DataError(f"the tokenizer has {tokenizer.modalities}, the model {modalities(config.model)}")
        self._seed, self.microbatches = config.seed, config.training.microbatches
        self.layout = batch_layout(config, data_shards)
        self.names, self.rows, self.items = self.layout.names, self.layout.rows, self.layout.items
        self.arrays = self.layout.arrays
        self.table = Table(self.modalities.values(), self.items)
        self.members, self.skipped, kinds = [], collections.Counter(), tuple(self.modalities)
        for s, name in enumerate(self.names):
            ledger = prepared(config, name, split, tokenizer, cache)
            plan = Plan(ledger, data.seq_len, self.layout.size[s], self.layout.places[s], kinds, cache)
            self.skipped.update({f"{name}/{kind}": n for kind, n in plan.skipped.items()})
            if plan.skipped:
                log.warning("%s: %s records are left out, the last: %s", name, plan.skipped, plan.last_skipped)
            unreadable = sum(n for kind, n in self.skipped.items() if not kind.endswith(f"/{Absent.kind}"))
            if unreadable > data.max_skipped:
                raise DataError(too_many_skipped(self.skipped, data.max_skipped, plan.last_skipped))
            if not plan.bundles.sum():
                raise DataError(f"data.sources.{name}: no document in split {split!r}")
            augment = {kind: dict(options) for kind, options in data.sources[name].get("augment", {}).items()}
            self.members.append(Member(plan, Order(plan.bundles, (self._seed, s)), augment))

    @property
    def fingerprint(self) -> str:
        """Changes when a step's batch would: with the sources, the tokenizer, the packing or the shares."""
        parts = [self.tokenizer.fingerprint, self._seed, self.config.data.isolate_documents, self.microbatches]
        parts += [tuple(self.modalities.values())]
        parts += [(phase.first_step, phase.source.tolist(), phase.pattern.tobytes()) for phase in self.layout.phases]
        for member in self.members:
            augment = sorted((kind, sorted(options.items())) for kind, options in member.augment.items())
            parts += [(member.plan.key, augment)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def summary(self) -> list[str]:
        """A line for each source and one for all together, for the log."""
        lines, rows = [], self._rows_a_microbatch()
        for s, (name, member) in enumerate(zip(self.names, self.members, strict=True)):
            plan, size = member.plan, self.layout.size[s]
            fills = [f"{kind} fill {fill:.3f}" for kind, fill in plan.item_fill.items() if fill is not None]
            fills = ", ".join([f"text fill {plan.fill:.3f}", *fills])
            bundles = f" in bundles of {size}" if size > 1 else ""
            share = f"{rows[s]:g} of the {self.rows} rows of a microbatch{bundles}"
            documents = f"{sum(plan.ledger.documents):,} documents"
            lines.append(f"{name}: {documents}, {share}, {plan.bundles.sum() * size:,} rows an epoch, {fills}")
        fills = [f"{kind} fill {fill:.3f}" for kind, fill in self.item_fill().items()]
        lines.append("all: " + ", ".join([f"text fill {self.plan_fill():.3f}", *fills]))
        return lines + self.epoch_warnings()

    def epoch_warnings(self) -> list[str]:
        """Which sources the run will have seen more often than their `epochs` say."""
        steps, lines = self.config.training.steps, []
        for name, seen in self.epoch(steps).items():
            limit = self.config.data.sources[name].get("epochs", 0)
            if limit and seen > limit:
                lines.append(
                    f"WARNING: {name} will have been seen {seen:.2f} times after {steps:,} steps; "
                    f"data.sources.{name}.epochs is {limit:g}: lower its share, or take more data"
                )
        return lines

    def plan_fill(self) -> float:
        """Share of text positions that hold a token, on average over the steps of the first phase."""
        return float(np.average([member.plan.fill for member in self.members], weights=self._rows_a_microbatch()))

    def _rows_a_microbatch(self) -> np.ndarray:
        """float64[S], in the first phase, on average over its steps."""
        return self.layout.phases[0].drawn(PERIOD) * self.layout.size / PERIOD

    def item_fill(self) -> dict[str, float]:
        """Share of the places for items that hold one, on average over the steps of the first phase, by modality."""
        used, bundles = collections.Counter(), self.layout.phases[0].bundles
        for n, member in zip(bundles, self.members, strict=True):
            used.update({kind: n * each for kind, each in member.plan.items_a_bundle.items()})
        return {kind: float(used[kind] / places) for kind, places in self.items.items()}

    def epoch(self, step: int) -> dict[str, float]:
        """How often each source has been seen when step `step` begins."""
        drawn = self.layout.drawn(step)
        each = zip(self.names, drawn, self.members, strict=True)
        return {name: float(n / member.plan.bundles.sum()) for name, n, member in each}

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
        parts, skipped, used = [], [], dict.fromkeys(here, 0)
        for a in range(self.microbatches):
            gathered = self.gather(step, a, rows, here)
            bad = {}
            for m in np.flatnonzero(gathered.wanted(rows, here)).tolist():
                kind, number = gathered.kind_of(m), int(gathered.number[m])
                try:
                    item = self._item(gathered, m)
                except RecordError as error:
                    bad[int(gathered.items[m, 0])] = error
                    continue
                if number in here[kind]:
                    media[kind][a, number - here[kind].start] = item
                    used[kind] += 1
            for piece, error in bad.items():
                if gathered.row[piece] in rows:
                    name = self.names[gathered.source[piece]]
                    skipped.append((name, error.kind, error.where, str(error)))
            pieces = gathered.pieces(rows, bad, self.table)
            isolate = self.config.data.isolate_documents
            parts.append(assemble(pieces, len(rows), self.config.data.seq_len, self.tokenizer, isolate))
        arrays = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        arrays["row_source"] = self.layout.row_source(step)[:, rows.start : rows.stop]
        arrays["media"] = media
        stats = {
            "text_fill": float((arrays["segment_ids"] > 0).mean()),
            "item_fill": {kind: n / max(1, self.microbatches * len(here[kind])) for kind, n in used.items()},
            "skipped": skipped,
        }
        return arrays, stats

    def gather(self, step: int, a: int, rows: range, here: dict[str, range]) -> Gathered:
        """What microbatch `a` of a step has in the rows and places that are here."""
        phase = self.layout.phase(step)
        wanted = _overlap(phase.first_row, rows)
        for kind, places in here.items():
            wanted |= _overlap(phase.first_item[kind], places)
        source, draw = self.layout.draws(step, a)
        bundles = []
        for s, member in enumerate(self.members):
            places = np.flatnonzero(wanted & (source == s))
            if len(places):
                bundles.append((s, member.plan, places, draw[places], *member.order(draw[places])))
        return gather(bundles, phase)

    def _item(self, gathered: Gathered, m: int) -> np.ndarray:
        """Item m as the array of a batch."""
        shard, index = gathered.item_source(m)
        item = shard.media(index)
        side, shape = host(item.kind), self.modalities[item.kind].shape
        decoded = side.decode(item.data, f"{gathered.name(m)} {item.kind}")
        if self.split != "train":
            return side.item(decoded, shape)
        s, draw, number = gathered.draw_of(m)
        places = self.layout.places[s]
        draws = _draws(self._seed, s, draw, sum(places))[sum(places[: list(self.modalities).index(item.kind)]) + number]
        return side.item(decoded, shape, draws, **self.members[s].augment.get(item.kind, {}))


@functools.lru_cache(maxsize=1024)
def _draws(seed: int, s: int, draw: int, items: int) -> np.ndarray:
    """float64[items, DRAWS], the random numbers of a bundle."""
    return philox((seed, s, draw)).random((items, DRAWS))


def _overlap(first: np.ndarray, wanted: range) -> np.ndarray:
    """bool[n]: whether first[i]:first[i + 1] has one of `wanted`."""
    return (first[:-1] < wanted.stop) & (first[1:] > wanted.start) & (first[1:] > first[:-1])
