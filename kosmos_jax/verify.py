"""`kosmos verify`: whether a checkpoint still is what was written."""

from pathlib import Path

from tqdm import tqdm

from kosmos_jax.checkpoint import ITEMS, assert_intact, read_run, reading, step_directory
from kosmos_jax.checksums import checksums
from kosmos_jax.interop.stored import StoredArrays
from kosmos_jax.model import STACKS
from kosmos_jax.programs import keep_programs


def verify(args) -> None:
    """Reads a checkpoint, compares the checksums of its arrays, and prints what it found.

    Raises:
      UserError: nothing there, unreadable, or damaged.
    """
    keep_programs()
    directory = step_directory(args.checkpoint)
    count, size = assert_arrays_intact(directory)
    print(f"{directory}: {count} arrays, {size / 2**30:.2f} GiB, all as they were written")


def assert_arrays_intact(directory: Path, items=ITEMS) -> tuple[int, int]:
    """Compares checksums, one array at a time, or one layer where arrays are stacked over layers.

    Args:
      directory: of a step.
      items: those of the checkpoint to look at.

    Returns:
      (arrays, bytes) that were read.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    with reading(directory):
        written = {item: sums for item, sums in read_run(directory)["checksums"].items() if item in items}
    count, size = sum(map(len, written.values())), 0
    with tqdm(total=count, desc="checksums", unit=" arrays", delay=2, disable=None) as bar:
        for item, sums in written.items():
            stored = StoredArrays(directory / item)
            for name in sums:
                found, words = 0, 0
                for layer in range(stored.layers(name)) if name.startswith(STACKS) else (None,):
                    part = stored.read(name, layer)
                    # One name, so that each shape is compiled once.
                    found += checksums({"part": part}, first=words)["part"]
                    words, size = words + part.size, size + part.nbytes
                assert_intact(directory / item, {name: found % 2**32}, sums)
                bar.update()
    return count, size
