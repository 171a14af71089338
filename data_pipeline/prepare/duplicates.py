"""Near-duplicates by MinHash: a document is left out if it shares a band with an earlier one.

14 bands of 8 hashes of words five in a row: of pairs with a Jaccard similarity of 0.8 they find 92 of 100, of 0.5 five
(1 - (1 - s^8)^14; Leskovec et al., Mining of Massive Datasets, 3.4).
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from data_pipeline.documents import Document
from data_pipeline.prepare.filters import text_of

BANDS, ROWS, WORDS, SEED = 14, 8, 5, 2302


def signature(document: Document) -> np.ndarray:
    """uint64[BANDS]. A text of fewer than five words is a duplicate only of the same words."""
    import rensa

    words = text_of(document).lower().split()
    if len(words) < WORDS:
        start = int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest())
        return np.array([(start + band) % 2**64 for band in range(BANDS)], np.uint64)
    minhash = rensa.RMinHash(num_perm=BANDS * ROWS, seed=SEED)
    minhash.update([" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)])
    rows = np.array(minhash.digest(), np.uint32).reshape(BANDS, ROWS)
    bands = (hashlib.blake2b(bytes([band]) + row.tobytes(), digest_size=8).digest() for band, row in enumerate(rows))
    return np.array([int.from_bytes(band) for band in bands], np.uint64)


def duplicates(signatures: Sequence[np.ndarray], partitions: int = 1) -> np.ndarray:
    """bool[documents]: which of them share a band with an earlier one.

    Args:
      signatures: of shards in order, uint64[D, BANDS] each; memory-mapped ones are read one band at a time.
      partitions: of the range of hashes, one in memory at a time: 16 bytes a document over so many.
    """
    found = np.zeros(sum(map(len, signatures)), bool)
    for band in range(BANDS):
        for part in range(partitions):
            hashes, places, first = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
            for shard in signatures:
                own = np.asarray(shard[:, band])
                (chosen,) = np.nonzero(own % np.uint64(partitions) == part)
                hashes.append(own[chosen])
                places.append(chosen + first)
                first += len(own)
            hashes, places = np.concatenate(hashes), np.concatenate(places)
            order = np.argsort(hashes, kind="stable")
            again = np.diff(hashes[order], prepend=hashes[order][:1]) == 0
            again[:1] = False
            found[places[order][again]] = True
    return found
