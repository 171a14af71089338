"""`kosmos verify`: whether a checkpoint still is what was written."""

from kosmos_jax.checkpoint import step_directory
from kosmos_jax.interop.stored import assert_arrays_intact
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
