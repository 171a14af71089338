"""Prompts side by side, as rows that end together: what `interop.verify` gives both models."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kosmos_jax.inference.prompts import EncodedPrompt
from kosmos_jax.modality import Modality, Table


class Batch(NamedTuple):
    """B rows of T tokens.

    Attributes:
      tokens_BT, segments_BT, positions_BT, slots_BT: int32[B, T] as in training: segment 0 is padding, positions count
        from 0 in each row.
      media: by modality [N, *shape]; only those that some row has.
    """

    tokens_BT: np.ndarray
    segments_BT: np.ndarray
    positions_BT: np.ndarray
    slots_BT: np.ndarray
    media: dict[str, np.ndarray]


def collate(rows: Sequence[EncodedPrompt], pad: int, found: Sequence[Modality]) -> Batch:
    """Pads rows on the left.

    Args:
      rows: at least one.
      pad: the id that fills rows.
      found: the model's modalities, in order.
    """
    B, T = len(rows), max(len(row.tokens) for row in rows)
    tokens_BT, slots_BT = np.full((B, T), pad, np.int32), np.full((B, T), -1, np.int32)
    segments_BT, positions_BT = np.zeros((2, B, T), np.int32)
    items = {m.name: [item for row in rows for item in row.media.get(m.name, ())] for m in found}
    media = {m.name: np.array(items[m.name], m.dtype) for m in found if items[m.name]}
    table, numbers = Table(found, {name: len(array) for name, array in media.items()}), dict.fromkeys(items, 0)
    for b, row in enumerate(rows):
        n = len(row.tokens)
        tokens_BT[b, T - n :], segments_BT[b, T - n :], positions_BT[b, T - n :] = row.tokens, 1, np.arange(n)
        for kind, start in zip(row.kinds, row.starts, strict=True):
            slots = table.slots(kind, numbers[kind])
            slots_BT[b, T - n + start :][: len(slots)] = slots
            numbers[kind] += 1
    return Batch(tokens_BT, segments_BT, positions_BT, slots_BT, media)
