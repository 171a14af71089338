"""Arrays that were computed once, in folders of a cache, read by memory map."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np


def stored(folder: Path, build: Callable[[], tuple[dict, dict]]) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays (memory-mapped) and metadata cached in `folder`; built and written first if they are not there.

    Written beside and then renamed: a reader never sees half a folder, and of several processes that build at the same
    time the first one wins. A folder without metadata, of an earlier version or deleted in part, is replaced.
    """
    complete = folder / "metadata.json"
    if not complete.is_file():
        arrays, metadata = build()
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        for name, value in arrays.items():
            np.save(temporary / f"{name}.npy", value)
        (temporary / complete.name).write_text(json.dumps(metadata))
        if folder.exists() and not complete.is_file():
            with suppress(FileNotFoundError):  # another process was faster
                shutil.rmtree(folder.rename(temporary.with_suffix(".replaced")))
        try:
            os.rename(temporary, folder)
        except OSError:
            shutil.rmtree(temporary)
    metadata = json.loads(complete.read_text())
    return {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}, metadata
