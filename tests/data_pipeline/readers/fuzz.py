"""Damaged files: whatever happens to the bytes of a good one, a reader yields documents and errors, and ends."""

import collections
import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data_pipeline.documents import Document, RecordError

# How many damaged files each reader is given; 10000 by hand.
FILES = int(os.environ.get("KOSMOS_FUZZ", 200))
SECONDS = 10
# What formats give a meaning to.
BYTES = [b"\0", b"\xff", b"\x80", b"\n", b"\r", b'"', b"{", b"}", b"[", b",", b"\t", b"-", b"0", b"9", b"\\ud800"]


def survives(
    read: Callable[[], Iterable], file: Path, seed: int = 0, repaired: Callable[[bytes], bytes] = bytes
) -> collections.Counter:
    """How many of each class were read from damaged copies of a file; it is whole again afterwards.

    Args:
      read: everything that a reader, made while the file was whole, yields of it.
      repaired: mends checksums of the format, or no damage would be seen behind them.
    """
    good, found = file.read_bytes(), collections.Counter()
    assert all(isinstance(each, Document) for each in read())
    for n in range(FILES):
        file.write_bytes(repaired(damaged(good, random.Random(f"{seed} {n}"))))
        with _at_most(SECONDS, f"seed {seed}, file {n}"):
            for each in read():
                assert isinstance(each, Document | RecordError), f"seed {seed}, file {n}: {each!r}"
                found[type(each).__name__] += 1
    file.write_bytes(good)
    return found


def damaged(data: bytes, random: random.Random) -> bytes:
    """One to four times: a bit flipped, bytes lost, added or repeated, or the end cut off."""
    for _ in range(random.randint(1, 4)):
        start, stop = sorted(random.randint(0, len(data)) for _ in range(2))
        near = min(stop, start + random.randint(1, 8))
        choice = random.randrange(7)
        if choice == 0:
            data = data[:stop]
        elif choice == 1:
            data = data[:start] + data[near:]
        elif choice == 2:
            data = data[:stop] + data[start:]
        elif choice == 3:
            data = data[:start] + random.choice(BYTES) + data[start:]
        elif choice == 4:
            data = data[:start] + random.choice(BYTES) + data[near:]
        elif start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << random.randrange(8)]) + data[start + 1 :]
    return data


@contextlib.contextmanager
def _at_most(seconds: float, what: str) -> Iterator[None]:
    def over(*_):
        raise AssertionError(f"{what} takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
