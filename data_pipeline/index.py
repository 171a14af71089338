"""What the planner must know of every document: its length, where it may be cut, how many items of media it has.

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
from data_pipeline.tokenizer import Encoded, Tokenizer


@dataclasses.dataclass(frozen=True)
class Index:
    """The documents of one source under one tokenizer.

    Document i owns the entries first[i]:first[i + 1] of the flat arrays; none if its record could not be read.

    Attributes:
      key: changes with the source, the tokenizer and the modalities.
      first: int64[documents + 1].
      cuts: int32[entries], the document's legal cuts, the last one its length (see `tokenizer.Encoded`).
      items: int32[entries, K], how many of the document's items of each of the tokenizer's K modalities lie before that
        cut.
      skipped: how many records could not be read, by kind.
      last_skipped: the name and the trouble of the last of them.
    """

    key: str
    first: np.ndarray
    cuts: np.ndarray
    items: np.ndarray
    skipped: dict[str, int]
    last_skipped: str

    def __len__(self) -> int:
        return len(self.first) - 1

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The `cuts` and `items` of document i."""
        span = slice(self.first[i], self.first[i + 1])
        return self.cuts[span], self.items[span]


def load_index(source: Source, tokenizer: Tokenizer, cache: Path, name: str) -> Index:
    """The index of a source, from `cache` if it is there; otherwise every document is read and tokenised.

    Args:
      source: what to index.
      tokenizer: with the modalities that documents may have.
      cache: folder of indexes and row plans.
      name: the source's, for progress and in the cache.

    Raises:
      DataError: a document has an item of a modality that the tokenizer does not have.
    """
    media = "".join(f"-{modality.name}{modality.tokens}" for modality in tokenizer.modalities)
    key = f"{name}-{source.fingerprint}-{tokenizer.fingerprint}{media}"
    arrays, metadata = stored(cache / f"index-{key}", lambda: _build(source, tokenizer, name))
    return Index(key, **arrays, **metadata)


def _build(source: Source, tokenizer: Tokenizer, name: str) -> tuple[dict, dict]:
    from tqdm import tqdm

    names = [modality.name for modality in tokenizer.modalities]
    first, cuts, items = array.array("q", [0]), array.array("i"), array.array("i")
    skipped, last = collections.Counter(), ""
    for i in tqdm(range(len(source)), f"indexing {name}", unit=" documents", delay=2, disable=None):
        try:
            encoded = tokenizer.encode_document(source[i].parts)
            cuts.extend(encoded.cuts.tolist())
            items.extend(_items_before(encoded, names).ravel().tolist())
        except RecordError as error:
            skipped[error.kind] += 1
            last = str(error)
        first.append(len(cuts))
    arrays = {
        "first": np.array(first, np.int64),
        "cuts": np.array(cuts, np.int32),
        "items": np.array(items, np.int32).reshape(len(cuts), len(names)),
    }
    return arrays, {"skipped": dict(skipped), "last_skipped": last}


def _items_before(encoded: Encoded, names: list[str]) -> np.ndarray:
    """int32[cuts, K]: how many items of each modality begin before each cut."""
    of_kind = np.array([[part.kind == name for name in names] for part in encoded.media], bool)
    of_kind = of_kind.reshape(len(encoded.media), len(names))
    totals = np.concatenate([np.zeros((1, len(names)), np.int32), np.cumsum(of_kind, axis=0, dtype=np.int32)])
    return totals[np.searchsorted(encoded.starts, encoded.cuts)]


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
