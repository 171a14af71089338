"""The plan of a source: which piece of which document stands in which row, block by block.

The plan of a block follows from the lengths of its documents, T, G and the places for media alone. It is made once, and
cached on disk; of a source of any size a run has only those in memory that its latest batches came from.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data_pipeline.cache import stored
from data_pipeline.documents import RowError
from data_pipeline.packing import ROWS_AN_ITEM, bundles, pack
from data_pipeline.prepare.ledger import Ledger, joined
from data_pipeline.readers import digest
from data_pipeline.shards import Shard

# Fewer are planned in this process.
MANY_BLOCKS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a source.

    Attributes:
      ledger: of what was prepared.
      seq_len: T.
      size: G, rows of a bundle.
      places: places for items in a bundle, for each of K modalities.
      kinds: the modalities.
      cache: folder of plans, and of copies of shards in a bucket.
    """

    ledger: Ledger
    seq_len: int
    size: int
    places: tuple[int, ...]
    kinds: tuple[str, ...]
    cache: Path

    @functools.cached_property
    def key(self) -> str:
        parts = (self.seq_len, self.size, self.places, self.kinds, ROWS_AN_ITEM)
        return digest(self.ledger.key, self.ledger.documents, *parts)

    @functools.cached_property
    def summaries(self) -> np.ndarray:
        """int64[blocks, 3 + K]: of every block the bundles, tokens, documents skipped, and items of each modality."""
        folder = self.cache / f"plan-{self.key}"
        arrays, _ = stored(folder / "all", lambda: ({"summaries": self._all_summaries()}, {}))
        return arrays["summaries"]

    def _all_summaries(self) -> np.ndarray:
        return np.array(list(self._all()), np.int64).reshape(-1, 3 + len(self.kinds))

    def _all(self) -> Iterator[np.ndarray]:
        from tqdm import tqdm

        blocks = range(len(self.ledger.blocks) - 1)
        bar = functools.partial(tqdm, desc="planning", total=len(blocks), unit=" blocks", delay=2, disable=None)
        if len(blocks) < MANY_BLOCKS:
            yield from bar(self._summary(block) for block in blocks)
            return
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
            yield from bar(pool.map(self._summary, blocks, chunksize=4))

    def _summary(self, block: int) -> np.ndarray:
        return self.block(block)["summary"]

    @property
    def bundles(self) -> np.ndarray:
        """int64[blocks], how many each has."""
        return self.summaries[:, 0]

    @property
    def fill(self) -> float:
        """Share of text positions that hold a token, <s> and </s> included."""
        return float(self.summaries[:, 1].sum() / max(1, self.bundles.sum() * self.size * self.seq_len))

    @property
    def items_a_bundle(self) -> dict[str, float]:
        """Items of a bundle on average, by modality."""
        return dict(zip(self.kinds, self.summaries[:, 3:].sum(axis=0) / max(1, self.bundles.sum()), strict=True))

    @property
    def item_fill(self) -> dict[str, float | None]:
        """Share of the bundles' places for items that hold one, by modality; None where there are no places."""
        each = zip(self.kinds, self.places, strict=True)
        return {kind: self.items_a_bundle[kind] / places if places else None for kind, places in each}

    @property
    def skipped(self) -> dict[str, int]:
        """Records that are left out, by kind: what could not be prepared, and what rows cannot hold."""
        rows = int(self.summaries[:, 2].sum())
        return self.ledger.skipped | ({RowError.kind: rows} if rows else {})

    @property
    def last_skipped(self) -> str:
        """A message on one of them, the empty text if there is none."""
        for block in np.flatnonzero(self.summaries[:, 2])[-1:].tolist():
            number = int(self.block(block)["skipped"][-1])
            for shard, first, stop in self.shards(block):
                if number < stop:
                    return str(RowError(shard.name(number - first), self._why()))
        return next((messages[-1] for messages in self.ledger.examples.values()), "")

    def _why(self) -> str:
        places = dict(zip(self.kinds, self.places, strict=True))
        return (
            f"a row cannot hold one of its items (data.seq_len is {self.seq_len}, places in {self.size} rows are "
            f"{places}), or it has more than {ROWS_AN_ITEM} rows of tokens for each item"
        )

    def shards(self, block: int) -> list[tuple[Shard, int, int]]:
        """The shards of a block, each with the documents of the block that it has, as first and stop."""
        return _shards(self, block)

    def block(self, block: int) -> dict[str, np.ndarray]:
        """The plan of a block: made, and cached on disk, when it is asked for.

        Returns:
          pieces: int32[P, 3]: document of the block, start, stop; token offsets in the document's body.
          first: int64[bundles * G + 1]; row r of bundle b has the pieces first[b * G + r]:first[b * G + r + 1].
          summary: int64[3 + K], see `summaries`.
          skipped: int64[], documents of the block that rows cannot hold.
        """
        return _block(self, block)

    def make(self, block: int) -> dict[str, np.ndarray]:
        """The plan of a block, see `block`."""
        places = np.array(self.places, np.int64)
        documents = joined([shard.documents(self.kinds) for shard in self.ledger.shards(block, self.cache)])
        rows = pack(documents, self.seq_len, places, self.size, seed=block, without=self.ledger.dropped_of(block))
        order = bundles(rows.items, self.size, places).ravel()
        sizes = np.where(order >= 0, np.diff(rows.first)[order], 0)
        first = np.concatenate([[0], np.cumsum(sizes)])
        from_ = np.repeat(rows.first[:-1][order] - first[:-1], sizes) + np.arange(first[-1])
        summary = [len(order) // self.size, rows.tokens.sum(), len(rows.skipped), *rows.items.sum(axis=0)]
        return dict(pieces=rows.pieces[from_], first=first, summary=np.array(summary, np.int64), skipped=rows.skipped)


# Those of the latest batches; memory-mapped, so that few bytes of each are in memory.
@functools.lru_cache(maxsize=2048)
def _block(plan: Plan, block: int) -> dict[str, np.ndarray]:
    return stored(plan.cache / f"plan-{plan.key}" / f"{block:06}", lambda: (plan.make(block), {}))[0]


@functools.lru_cache(maxsize=2048)
def _shards(plan: Plan, block: int) -> list[tuple[Shard, int, int]]:
    shards = plan.ledger.shards(block, plan.cache)
    ends = np.cumsum([len(shard) for shard in shards]).tolist()
    return [(shard, end - len(shard), end) for shard, end in zip(shards, ends, strict=True)]
