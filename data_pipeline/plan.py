"""The row plan: which piece of which document stands in which row of a source, for an entire epoch.

Made once for (index, seq_len, items per row) and cached on disk: packing needs no look-ahead at run time, loses
nothing, and any row is found at once.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.documents import RowError
from data_pipeline.index import Index, stored
from data_pipeline.packing import ROWS_AN_ITEM, Packer


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """Rows of one source.

    Attributes:
      first: int64[rows + 1]; row r holds the pieces first[r]:first[r + 1], in order.
      pieces: int64[pieces, 3]: document, start, stop; token offsets in the document's body.
      fill: share of text positions that hold a token, <s> and </s> included.
      item_fill: share of the rows' places for items used, for each modality of the index; 1 where there are none.
      skipped: int64[], the documents that the rows cannot hold.
      why: of the last of them.
    """

    first: np.ndarray
    pieces: np.ndarray
    fill: float
    item_fill: list[float]
    skipped: np.ndarray
    why: str

    def __len__(self) -> int:
        return len(self.first) - 1

    def row(self, r: int) -> list[tuple[int, int, int]]:
        return [tuple(piece) for piece in self.pieces[self.first[r] : self.first[r + 1]].tolist()]


def load_plan(index: Index, seq_len: int, per_row: Sequence[int], cache: Path) -> RowPlan:
    """The row plan of an index, from `cache` if it is there.

    Args:
      index: the documents' lengths and items.
      seq_len: T.
      per_row: places for items in a row, for each modality of the index.
      cache: folder of indexes and row plans.
    """
    limits = "-".join(map(str, per_row))
    arrays, metadata = stored(
        cache / f"plan-{index.key}-{seq_len}-{limits}-{ROWS_AN_ITEM}", lambda: _build(index, seq_len, per_row)
    )
    return RowPlan(**arrays, **metadata)


def _build(index: Index, seq_len: int, per_row: Sequence[int]) -> tuple[dict, dict]:
    packer, skipped, why = Packer(seq_len, per_row), [], ""
    # Shuffled once for all, so that neighbours in a file (the pages of one site) do not share rows in every epoch.
    for document in np.random.Generator(np.random.Philox(key=0)).permutation(len(index)):
        cuts, items = index.document(document)
        try:
            if len(cuts):
                packer.add(int(document), cuts, items)
        except RowError as error:
            skipped.append(document)
            why = error.why
    rows = packer.finish()
    arrays = {
        "first": np.cumsum([0] + [len(row.pieces) for row in rows], dtype=np.int64),
        "pieces": np.array([piece for row in rows for piece in row.pieces], np.int64).reshape(-1, 3),
        "skipped": np.array(skipped, np.int64),
    }
    empty, places = sum(row.room for row in rows), np.array(per_row) * len(rows)
    free = sum((row.item_room for row in rows), np.zeros_like(places))
    metadata = {
        "fill": 1 - empty / max(1, seq_len * len(rows)),
        "item_fill": (1 - free / np.maximum(places, 1)).tolist(),
        "why": why,
    }
    return arrays, metadata
