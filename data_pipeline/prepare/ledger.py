"""The one file that says what has been prepared: a run of thousands of shards reads it and nothing else to begin."""

import collections
import dataclasses
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.documents import DataError
from data_pipeline.files import file_system, is_local, opened
from data_pipeline.packing import Documents
from data_pipeline.prepare.duplicates import duplicates
from data_pipeline.prepare.filters import NearDuplicates
from data_pipeline.shards import ARRAYS, DOCUMENTS, MEDIA, Shard, StoredBands

LEDGER, DROPPED = "ledger.json", "dropped.npy"
# Of near-duplicates.
EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A prepared split of a source.

    Attributes:
      folder: of the shards.
      key: of the job, changes with what was prepared.
      tokenizer: its fingerprint.
      modalities: name and vectors of each, in order.
      names, documents, tokens: of each shard.
      items: of each shard, by modality.
      skipped: records that could not be used, by kind.
      examples: messages on some of them, by kind.
      read: documents that could be read.
      filters: what each filter of the recipe did, in order: name, rejected, changed, examples.
      duplicates: documents that are in the shards and left out of rows, as earlier ones are nearly the same.
    """

    folder: str
    key: str
    tokenizer: str
    modalities: list[list]
    names: list[str]
    documents: list[int]
    tokens: list[int]
    items: list[dict[str, int]]
    skipped: dict[str, int]
    examples: dict[str, list[str]]
    read: int = 0
    filters: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    duplicates: int = 0

    @functools.cached_property
    def blocks(self) -> np.ndarray:
        """int64[blocks + 1]: block b is the shards blocks[b]:blocks[b + 1], of up to `DOCUMENTS` documents together."""
        first, held = [0], 0
        for n, documents in enumerate(self.documents):
            if held and held + documents > DOCUMENTS:
                first.append(n)
                held = 0
            held += documents
        return np.array([*first, len(self.documents)] if self.documents else [0], np.int64)

    @functools.cached_property
    def _dropped(self) -> np.ndarray:
        address = f"{self.folder.rstrip('/')}/{DROPPED}"
        if is_local(address):
            return np.load(address, mmap_mode="r")
        with opened(address) as file:
            return np.load(io.BytesIO(file.read()))

    def dropped_of(self, block: int) -> np.ndarray | None:
        """bool[D], which documents of a block are near-duplicates of earlier ones; None if none of any block is."""
        if not self.duplicates:
            return None
        first, stop = (sum(self.documents[:n]) for n in self.blocks[block : block + 2])
        return np.array(self._dropped[first:stop])

    def shards(self, block: int, cache: Path) -> list[Shard]:
        """The shards of a block; those in a bucket are copied to `cache` first."""
        names = self.names[self.blocks[block] : self.blocks[block + 1]]
        return [open_shard(self.folder, name, str(Path(cache) / "shards" / self.key)) for name in names]


@functools.lru_cache(maxsize=512)
def open_shard(folder: str, name: str, copies: str) -> Shard:
    """A shard of a folder, memory-mapped; of one in a bucket, its copy in `copies`."""
    if is_local(folder):
        return Shard(Path(folder) / name)
    system, path = file_system(folder)
    copies = Path(copies)
    copies.mkdir(parents=True, exist_ok=True)
    for suffix in MEDIA, ARRAYS:
        copy = copies / f"{name}{suffix}"
        if copy.exists() or (suffix == MEDIA and not system.exists(f"{path}/{name}{suffix}")):
            continue
        with tempfile.TemporaryDirectory(prefix=".copying-", dir=copies) as temporary:
            system.get_file(f"{path}/{name}{suffix}", f"{temporary}/{copy.name}")
            Path(temporary, copy.name).replace(copy)
    return Shard(copies / name)


def joined(parts: Sequence[Documents]) -> Documents:
    """The documents of several shards as those of one."""
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(len(part.cuts) for part in parts)])
    first_cut = [part.first_cut[:-1] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
    return Documents(
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.cuts for part in parts]),
        np.concatenate([*first_cut, shifts[-1:]]),
        np.concatenate([part.items for part in parts]),
    )


def consolidated(folder: str, key: str, tokenizer, reports: Sequence[dict[str, Any]], signed: bool = False) -> Ledger:
    """The ledger, from the reports of all shards of the reader, in order; see `job.Worker.do`.

    Args:
      folder, key: see `Ledger`.
      tokenizer: of the shards.
      reports: of all shards of the reader.
      signed: near-duplicates are to be left out.
    """
    shards = [shard for report in reports for shard in report["shards"]]
    skipped, examples = collections.Counter(), {}
    for report in reports:
        skipped.update(report["skipped"])
        for kind, messages in report["examples"].items():
            examples[kind] = [*examples.get(kind, []), *messages][:20]
    ledger = Ledger(
        folder,
        key,
        tokenizer.fingerprint,
        [[modality.name, modality.tokens] for modality in tokenizer.modalities],
        *([shard[name] for shard in shards] for name in ("name", "documents", "tokens", "items")),
        dict(skipped),
        examples,
        sum(report.get("read", 0) for report in reports),
        _merged([report.get("filters", {}) for report in reports]),
    )
    return _without_duplicates(ledger) if signed else ledger


def write_ledger(ledger: Ledger):
    """Writes it into its folder, and removes there what processes left that were killed."""
    content = dataclasses.asdict(ledger)
    del content["folder"]  # it may be moved
    write_text(ledger.folder, LEDGER, json.dumps(content))
    if is_local(ledger.folder):
        for left_over in Path(ledger.folder).glob(".writing-*"):
            if left_over.is_dir():
                shutil.rmtree(left_over, ignore_errors=True)
            else:
                left_over.unlink(missing_ok=True)


def _merged(reports: Sequence[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, own in (each for report in reports for each in report.items()):
        sums = found.setdefault(name, dict(name=name, rejected=0, changed=0, examples=[]))
        sums["rejected"] += own["rejected"]
        sums["changed"] += own["changed"]
        sums["examples"] = (sums["examples"] + own["examples"])[:20]
    return list(found.values())


def _without_duplicates(ledger: Ledger) -> Ledger:
    """Marks near-duplicates, of all shards together."""
    bands = [StoredBands(f"{ledger.folder.rstrip('/')}/{name}") for name in ledger.names]
    dropped = duplicates(bands, sum(ledger.documents))
    file = io.BytesIO()
    np.save(file, dropped)
    write_bytes(ledger.folder, DROPPED, file.getvalue())
    count = int(dropped.sum())
    found = dict(rejected=count, examples=_names(ledger, np.flatnonzero(dropped)[:EXAMPLES].tolist()))
    filters = [each | (found if each["name"] == NearDuplicates.name else {}) for each in ledger.filters]
    return dataclasses.replace(ledger, duplicates=count, filters=filters)


def _names(ledger: Ledger, documents: Sequence[int]) -> list[str]:
    """Of documents, by their numbers in all shards."""
    stops = np.cumsum(ledger.documents)
    with tempfile.TemporaryDirectory() as copies:
        found = []
        for document in documents:
            n = int(np.searchsorted(stops, document, "right"))
            shard = open_shard.__wrapped__(ledger.folder, ledger.names[n], copies)  # copies do not stay
            found.append(shard.name(document - int(stops[n]) + len(shard))[:500])
    return found


def read_ledger(folder: str) -> Ledger | None:
    """The ledger of a folder; None if there is none.

    Raises:
      DataError: it is none.
    """
    address = f"{folder.rstrip('/')}/{LEDGER}"
    try:
        with opened(address) as file:
            return Ledger(folder, **json.loads(file.read()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{address} is damaged ({error}); remove it, and prepare again: what is done stays") from error


def write_text(folder: str, name: str, text: str):
    write_bytes(folder, name, text.encode(errors="backslashreplace"))  # names of files need not be UTF-8


def write_bytes(folder: str, name: str, data: bytes):
    """A small file, complete or not there."""
    if is_local(folder):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writing-", delete=False) as file:
            file.write(data)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(Path(folder) / name)
    else:
        system, path = file_system(folder)
        system.pipe_file(f"{path}/{name}", data)


def read_text(folder: str, name: str) -> str | None:
    try:
        with opened(f"{folder}/{name}") as file:
            return file.read().decode()
    except FileNotFoundError:
        return None
