"""`kosmos verify`: whether a checkpoint still is what was written."""

from tqdm import tqdm

from kosmos_jax.checkpoint import assert_intact, read_run, reading, step_directory
from kosmos_jax.checksums import checksums
from kosmos_jax.interop.stored import StoredArrays
from kosmos_jax.programs import keep_programs


def verify(args) -> None:
    """Reads a checkpoint array by array, compares checksums, and prints what it found.

    Raises:
      UserError: nothing there, unreadable, or damaged.
    """
    keep_programs()
    directory = step_directory(args.checkpoint)
    with reading(directory):
        written = read_run(directory)["checksums"]
    count, size = sum(map(len, written.values())), 0
    with tqdm(total=count, desc="verify", unit=" arrays", delay=2, disable=None) as bar:
        for item, sums in written.items():
            stored = StoredArrays(directory / item)
            for name in sums:
                array = stored.read(name)
                found = checksums({"array": array})["array"]  # one name, so that each shape is compiled once
                assert_intact(directory / item, {name: found}, sums)
                size += array.nbytes
                bar.update()
    print(f"{directory}: {count} arrays, {size / 2**30:.2f} GiB, all as they were written")
