"""The prepared form of a source of the config: opened, made on the way if it is small, or how to make it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.documents import DataError, Document
from data_pipeline.prepare.job import Job, Worker
from data_pipeline.prepare.ledger import Ledger, read_ledger
from data_pipeline.prepare.recipe import Recipe, load_recipe
from data_pipeline.prepare.run import prepare
from data_pipeline.readers import Reader, digest, fingerprint, make_reader
from data_pipeline.tokenizer import Tokenizer

# What is larger, in bytes on disk, `kosmos data prepare` prepares before a run begins.
SMALL = 2**30


def prepared(config: Any, name: str, split: str, tokenizer: Tokenizer, cache: Path) -> Ledger:
    """The ledger of a source. A small one that is not prepared yet is prepared now, in `cache`.

    Args:
      config: the complete config.
      name: of the source, in `config.data.sources`.
      split: "train", "validation" or "test".
      tokenizer: with the model's modalities.
      cache: folder of what is prepared without being asked.

    Raises:
      DataError: it is not prepared, and large; or it was prepared for another tokenizer.
    """
    source = config.data.sources[name]
    job = make_job(config, name, split, tokenizer, cache)
    if source.get("prepared"):
        ledger = read_ledger(job.folder)
        if ledger is None:
            raise DataError(f"data.sources.{name}: {job.folder} is not prepared; {how_to(name, split)}")
    else:
        ledger = read_ledger(job.folder) or _prepared_now(job, name, split)
    _check(ledger, tokenizer, name)
    return ledger


def read(source: Any, split: str) -> Iterator[Document]:
    """The documents of a source as they are before they are tokenized: filtered, without those that cannot be read."""
    reader, recipe = make_reader(source, split), load_recipe(source.get("recipe", ""))
    return itertools.chain.from_iterable(filtered(reader, recipe, shard) for shard in reader.shards())


def filtered(reader: Reader, recipe: Recipe, shard: str) -> Iterator[Document]:
    """The documents of one shard of a reader, as `read` has them."""
    for document in reader.read(shard):
        if isinstance(document, Document):
            kept, _ = recipe.apply(document)
            if kept is not None:
                yield kept


def source_fingerprint(source: Any, split: str) -> str:
    """Changes with the documents of `read`."""
    return digest(fingerprint(source, split, make_reader(source, split)), load_recipe(source.get("recipe", "")).key)


def make_job(config: Any, name: str, split: str, tokenizer: Tokenizer, cache: Path, **changes) -> Job:
    """The job of preparing a split of a source: into `prepared`/SPLIT if the source names such a folder, or `cache`.

    Args:
      config, name, split, tokenizer, cache: see `prepared`.
      changes: other values of the source's keys.
    """
    source = config.data.sources[name]
    plain = (source.to_dict() if hasattr(source, "to_dict") else dict(source)) | changes
    settings = (tokenizer.model_bytes, tokenizer.kosmos2_tags, tokenizer.modalities)
    job = Job(name, plain, split, settings, f"{source.get('prepared')}/{split}", config.data.max_skipped)
    if source.get("prepared"):
        return job
    return job.into(str(Path(cache) / f"{name}-{split}-{Worker(job).key}"))


def _prepared_now(job: Job, name: str, split: str) -> Ledger:
    worker = Worker(job)
    if worker.size > SMALL:
        raise DataError(
            f"data.sources.{name}: its {worker.size / 2**30:.1f} GiB are not prepared; {how_to(name, split)}"
        )
    return prepare(job)


def how_to(name: str, split: str) -> str:
    return f"run: kosmos data prepare --config FILE --workdir DIR --source {name} --split {split}"


def _check(ledger: Ledger, tokenizer: Tokenizer, name: str):
    wanted = [[modality.name, modality.tokens] for modality in tokenizer.modalities]
    if ledger.tokenizer != tokenizer.fingerprint or ledger.modalities != wanted:
        raise DataError(
            f"data.sources.{name}: {ledger.folder} was prepared with another tokenizer or other modalities "
            f"({ledger.modalities}, now {wanted}); prepare it again, in another folder"
        )
