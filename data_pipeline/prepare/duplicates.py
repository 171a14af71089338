"""Near-duplicates by MinHash: a document is left out if it shares a band with an earlier one, be that left out or not.

14 bands of 8 hashes of words five in a row: of pairs with a Jaccard similarity of 0.8 they find 92 of 100, of 0.5 five
(1 - (1 - s^8)^14; Leskovec et al., Mining of Massive Datasets, 3.4).
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.documents import Document, Media
from data_pipeline.prepare.filters import text_of
from data_pipeline.shards import BANDS

ROWS, WORDS, SEED = 8, 5, 2302
# Documents that are compared at a time, at about 40 bytes each.
AT_A_TIME = 2**26


def signature(document: Document) -> np.ndarray:
    """uint64[BANDS]; of a text of fewer than five words one that only the same words with the same items have."""
    import rensa

    words = text_of(document).lower().split()
    if len(words) < WORDS:
        whole = hashlib.blake2b(" ".join(words).encode())
        for part in document.parts:
            if isinstance(part, Media):
                whole.update(b"\0" + hashlib.blake2b(part.data).digest())
        rows = [whole.digest()] * BANDS
    else:
        minhash = rensa.RMinHash(num_perm=BANDS * ROWS, seed=SEED)
        minhash.update([" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)])
        rows = [row.tobytes() for row in np.array(minhash.digest(), "<u4").reshape(BANDS, ROWS)]
    bands = [hashlib.blake2b(bytes([band]) + row, digest_size=8).digest() for band, row in enumerate(rows)]
    return np.frombuffer(b"".join(bands), "<u8").astype(np.uint64)


def duplicates(shards: Sequence[Any], documents: int, at_a_time: int = AT_A_TIME) -> np.ndarray:
    """bool[documents]: which of them share a band with an earlier one.

    Args:
      shards: in order; `shard[band]` is uint64[D], read when it is asked for.
      documents: of all together.
      at_a_time: how many are compared at a time, by a part of the range of hashes; every part reads all of them.
    """
    found, parts = np.zeros(documents, bool), -(-documents // at_a_time)
    for band in range(BANDS):
        for part in range(parts):
            hashes, places = _chosen(shards, band, part, parts)
            order = np.argsort(hashes, kind="stable")  # of equal ones the first document comes first
            hashes = hashes[order]
            found[places[order][1:][hashes[1:] == hashes[:-1]]] = True
    return found


def _chosen(shards: Sequence[Any], band: int, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of a band that fall into a part, and the documents that have them, in order."""
    hashes, places, first = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for shard in shards:
        own = np.asarray(shard[band])
        chosen = np.flatnonzero(own % np.uint64(parts) == part)
        hashes.append(own[chosen])
        places.append(chosen + first)
        first += len(own)
    return np.concatenate(hashes), np.concatenate(places)
