"""A permutation of 0..size-1 that is computed where it is asked for: no memory, no time, for any size.

A Feistel network over an even number of bits, walked along its cycles until it lands below `size` (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002). tf.random.experimental.index_shuffle does the same with a weaker cipher:
for a million rows we measured correlations up to 0.9 between the orders of two epochs, and of 0.4 between neighbours
in one; here both are what chance gives. Nor may an upgrade of a library change the order of a run.
"""

import functools

import numpy as np

ROUNDS = 8


def shuffled(i: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Where the permutation of (size, seed) takes each of i; all are in [0, size).

    Args:
      i: integers of any shape, from 0 to size - 1.
      size: how many are permuted.
      seed: integers; other ones give another permutation.

    Returns:
      int64, of the shape of i.
    """
    half = np.uint64(max(1, (int(size).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    values = np.asarray(i, np.uint64).ravel()
    found, left_over = np.empty(values.shape, np.int64), np.arange(len(values))
    while len(left_over):
        left, right = values >> half, values & low
        for key in _round_keys(seed):
            left, right = right, left ^ (_mixed(right + key) & low)
        values = (left << half) | right
        inside = values < np.uint64(size)
        found[left_over[inside]] = values[inside]
        values, left_over = values[~inside], left_over[~inside]
    return found.reshape(np.shape(i))


@functools.lru_cache(maxsize=1024)
def _round_keys(seed: tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def philox(seed: tuple[int, ...]) -> np.random.Generator:
    """A random stream of its own for every tuple of up to six integers (the first two the key, the rest the counter).

    The counter's lowest word is left to the stream itself, so streams never run into each other.
    """
    words = [*seed, *(0 for _ in range(5 - len(seed)))]
    return np.random.Generator(np.random.Philox(key=words[:2], counter=[0, *words[2:5]]))


class Order:
    """Draws without end from rows that lie in blocks: an epoch has each row once.

    Blocks are shuffled, and rows within a window of `WINDOW` blocks in that order: the rows of a batch come from few
    blocks. Nothing is stored but the order of blocks in the epochs asked for last.
    """

    WINDOW = 16

    def __init__(self, rows: np.ndarray, seed: tuple[int, ...]):
        """Args: rows: int64[blocks], the rows of each. seed: up to four integers."""
        self._rows, self._seed, self.rows = np.asarray(rows, np.int64), seed, int(np.sum(rows))
        self._epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        blocks = shuffled(np.arange(len(self._rows)), len(self._rows), (*self._seed, epoch))
        return blocks, np.concatenate([[0], np.cumsum(self._rows[blocks])])

    def __call__(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The block of each draw, and the row in it.

        Args:
          draws: int64[n], from 0; draw g is in epoch g // rows.
        """
        epochs, at = np.divmod(np.asarray(draws, np.int64), self.rows)
        found = np.empty((2, len(at)), np.int64)
        for epoch in np.unique(epochs).tolist():
            blocks, first = self._epoch(epoch)
            mine = np.flatnonzero(epochs == epoch)
            windows = (np.searchsorted(first, at[mine], "right") - 1) // self.WINDOW
            for window in np.unique(windows).tolist():
                here = mine[windows == window]
                start, stop = first[window * self.WINDOW], first[min((window + 1) * self.WINDOW, len(blocks))]
                inside = start + shuffled(at[here] - start, int(stop - start), (*self._seed, epoch, window + 1))
                k = np.searchsorted(first, inside, "right") - 1
                found[:, here] = blocks[k], inside - first[k]
        return found[0], found[1]
