"""One shard of a reader into prepared shards."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.documents import Absent, DataError, Document, Media, Place, RecordError
from data_pipeline.files import file_system, is_local
from data_pipeline.media import host
from data_pipeline.prepare.duplicates import signature
from data_pipeline.prepare.filters import text_of
from data_pipeline.prepare.recipe import load_recipe
from data_pipeline.readers import digest, fingerprint, make_reader
from data_pipeline.retries import retried
from data_pipeline.shards import ARRAYS, DOCUMENTS, MEDIA, ShardWriter
from data_pipeline.tokenizer import Tokenizer

# Changes when shards of an earlier version must not be used any more.
FORMAT = 1
# A shard ends here too: long documents (books) are held in memory while it is written.
TOKENS = 2**27
# What becomes of an item's bytes: stored at training's resolution, left where they lie, stored as they are.
MEDIA_MODES = ("inline", "reference", "original")
EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be prepared, and where to; it travels to other processes.

    Attributes:
      name: of the source, for progress and messages.
      source: an entry of `config.data.sources` as a plain dictionary.
      split: "train", "validation" or "test".
      tokenizer: the arguments of `Tokenizer`: the model's bytes, kosmos2_tags, modalities.
      folder: of the shards, on a disk or in a bucket.
      max_skipped: how many records may be unreadable.
    """

    name: str
    source: dict[str, Any]
    split: str
    tokenizer: tuple
    folder: str
    max_skipped: int

    def __post_init__(self):
        mode = self.source.get("media", "inline")
        if mode not in MEDIA_MODES:
            raise DataError(f"media is {mode!r}, none of {', '.join(MEDIA_MODES)}")

    def check_budget(self, skipped: dict[str, int], last: str):
        """Raises: DataError: more records than `max_skipped` cannot be read; `last` is a message on one of them.

        What was never downloaded does not count: of the web's addresses a third are dead.
        """
        if sum(n for kind, n in skipped.items() if kind != Absent.kind) > self.max_skipped:
            counts = {f"{self.name}/{kind}": n for kind, n in skipped.items()}
            raise DataError(too_many_skipped(counts, self.max_skipped, last))

    def into(self, folder: str) -> "Job":
        return dataclasses.replace(self, folder=folder)


class Worker:
    """Does the job's shards, one after another, in one process.

    Attributes:
      shards: the reader's.
      key: changes when what is prepared would.
    """

    def __init__(self, job: Job):
        self._job = job
        self._reader = make_reader(_Keys(job.source), job.split)
        self._recipe = load_recipe(job.source.get("recipe", ""))
        self._tokenizer = Tokenizer(*job.tokenizer)
        self._shapes = {modality.name: modality.shape for modality in self._tokenizer.modalities}
        self._mode = job.source.get("media", "inline")
        self._augment = job.source.get("augment", {})
        self.shards, self.size = tuple(self._reader.shards()), self._reader.size
        self.key = digest(
            *(FORMAT, fingerprint(_Keys(job.source), job.split, self._reader), self._mode, repr(self._augment)),
            *(self._tokenizer.fingerprint, self._tokenizer.modalities, self._recipe.key),
        )

    def do(self, n: int, progress: Callable[[int], None] = lambda documents: None) -> dict[str, Any]:
        """Prepares shard n of the reader, and returns its report, which is written last.

        Raises:
          DataError: more records than `max_skipped` cannot be read.
          OSError: a disk or the network still fails after `retries.WAITS`.
        """
        return retried(lambda: self._do(n, progress), self.shards[n])

    def _do(self, n: int, progress: Callable[[int], None]) -> dict[str, Any]:
        report = Report(self.shards[n], filters={each.name: Filtered() for each in self._recipe.filters})
        local = is_local(self._job.folder)
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._job.folder if local else None))
        try:
            shards = list(self._write(folder, n, report, progress))
            for shard in shards:
                for suffix in MEDIA, ARRAYS:
                    _publish(folder / f"{shard['name']}{suffix}", self._job.folder)
            record = dataclasses.asdict(report) | {"shards": shards}
            file = folder / report_name(n)
            file.write_text(json.dumps(record))
            _publish(file, self._job.folder)
            return record
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: Path, n: int, report: "Report", progress) -> Iterator[dict[str, Any]]:
        writer = None
        for document, encoded, stored in self._encoded(self.shards[n], report):
            if writer is None:
                name = f"{n:06}-{report.parts:03}"
                report.parts += 1
                writer = ShardWriter(folder / name, self._tokenizer.modalities, self._tokenizer.size)
            bands = signature(document) if self._recipe.near_duplicates else None
            writer.add(encoded, stored, document.where, bands)
            progress(1)
            if writer.documents >= DOCUMENTS or writer.tokens >= TOKENS:
                yield writer.close() | {"name": name}
                writer = None
        if writer is not None:
            yield writer.close() | {"name": name}

    def _encoded(self, shard: str, report: "Report"):
        for document in self._reader.read(shard):
            try:
                if isinstance(document, RecordError):
                    raise document
                report.read += 1
                given, (document, done) = document, self._recipe.apply(document)
                for name, why in done:
                    report.filters[name].count(given, why)
                if document is None:
                    continue
                encoded = self._tokenizer.encode_document(document.parts)
                if not len(encoded.tokens):
                    raise RecordError(document.where, "is empty")
                yield document, encoded, [self._stored(document, n, item) for n, item in enumerate(encoded.media)]
            except RecordError as error:
                report.skip(error)
                self._job.check_budget(report.skipped, str(error))

    def _stored(self, document: Document, n: int, item: Media) -> bytes | Place:
        where, side = f"{document.where} {item.kind} {n}", host(item.kind)
        decoded = side.decode(item.data, where)
        if self._mode == "reference" and item.place:
            return item.place
        if self._mode == "inline":
            return side.stored(item.data, decoded, self._shapes[item.kind], **self._augment.get(item.kind, {}))
        return item.data


@dataclasses.dataclass
class Report:
    """What became of the documents of a shard.

    Attributes:
      shard: the reader's.
      read: documents that could be read.
      parts: prepared shards.
      skipped: by kind, how many records could not be used.
      examples: messages on the first of them, by kind.
      filters: what each of the recipe's did, in order, by name.
    """

    shard: str
    read: int = 0
    parts: int = 0
    filters: dict[str, "Filtered"] = dataclasses.field(default_factory=dict)
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def skip(self, error: RecordError):
        self.skipped[error.kind] = self.skipped.get(error.kind, 0) + 1
        shown = self.examples.setdefault(error.kind, [])
        if len(shown) < EXAMPLES:
            shown.append(str(error)[:500])


@dataclasses.dataclass
class Filtered:
    """What a filter did: documents it rejected, others it changed, and messages on the first of those."""

    rejected: int = 0
    changed: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def count(self, document: Document, why: str):
        """Args: document: as it was read. why: it was rejected; "" if it was changed."""
        self.rejected, self.changed = self.rejected + bool(why), self.changed + (not why)
        if why and len(self.examples) < EXAMPLES:
            begins = " ".join(text_of(document)[:200].split())[:100]
            self.examples.append(f"{document.where}: {why[:300]}" + f": {begins}" * bool(begins))


class _Keys(dict):
    """A dictionary whose keys are attributes too, as a config's section has them."""

    __getattr__ = dict.__getitem__


def report_name(n: int) -> str:
    return f"{n:06}.json"


def _publish(file: Path, folder: str):
    """Moves a file to where it belongs, under its name, at once or not at all."""
    if not file.exists():  # a shard without media has no file of them
        return
    if is_local(folder):
        file.replace(Path(folder) / file.name)
    else:
        system, path = file_system(folder)
        system.put_file(str(file), f"{path}/{file.name}")


def too_many_skipped(skipped: dict[str, int], limit: int, last: str) -> str:
    counts = ", ".join(f"{name}: {n}" for name, n in sorted(skipped.items()))
    return f"{sum(skipped.values())} records cannot be read ({counts}), data.max_skipped is {limit}. The last: {last}"
