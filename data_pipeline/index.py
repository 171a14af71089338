"""What the planner must know of every document: its length, where it may be cut, how many images it has.

Computed once by tokenising, cached on disk, read by memory map.
"""

import array
import collections
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from data_pipeline.documents import RecordError
from data_pipeline.sources import Source
from data_pipeline.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Index:
    """The documents of one source under one tokenizer.

    Document i owns the entries first[i]:first[i + 1] of the flat arrays; none if its record could not be read.

    Attributes:
      key: changes with the source, the tokenizer and Q.
      first: int64[documents + 1].
      cuts: int32[entries], the document's legal cuts, the last one its length (see `tokenizer.Encoded`).
      images: int32[entries], how many of the document's images lie before that cut.
      skipped: how many records could not be read, by kind.
      last_skipped: the name and the trouble of the last of them.
    """

    key: str
    first: np.ndarray
    cuts: np.ndarray
    images: np.ndarray
    skipped: dict[str, int]
    last_skipped: str

    def __len__(self) -> int:
        return len(self.first) - 1

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The `cuts` and `images` of document i."""
        span = slice(self.first[i], self.first[i + 1])
        return self.cuts[span], self.images[span]


def load_index(source: Source, tokenizer: Tokenizer, image_tokens: int, cache: Path, name: str) -> Index:
    """The index of a source, from `cache` if it is there; otherwise every document is read and tokenised."""
    key = f"{name}-{source.fingerprint}-{tokenizer.fingerprint}-{image_tokens}"
    arrays, metadata = stored(cache / f"index-{key}", lambda: _build(source, tokenizer, image_tokens, name))
    return Index(key, **arrays, **metadata)


def _build(source: Source, tokenizer: Tokenizer, image_tokens: int, name: str) -> tuple[dict, dict]:
    from tqdm import tqdm

    first, cuts, images = array.array("q", [0]), array.array("i"), array.array("i")
    skipped, last = collections.Counter(), ""
    for i in tqdm(range(len(source)), f"indexing {name}", unit=" documents", delay=2, disable=None):
        try:
            encoded = tokenizer.encode_document(source[i].segments, image_tokens)
            cuts.extend(encoded.cuts.tolist())
            images.extend(np.searchsorted(encoded.image_starts, encoded.cuts).tolist())
        except RecordError as error:
            skipped[error.kind] += 1
            last = str(error)
        first.append(len(cuts))
    arrays = {
        "first": np.array(first, np.int64),
        "cuts": np.array(cuts, np.int32),
        "images": np.array(images, np.int32),
    }
    return arrays, {"skipped": dict(skipped), "last_skipped": last}


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
