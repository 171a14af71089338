"""All shards of a reader that are not prepared yet: by a pool of processes, or one part of several."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from data_pipeline.documents import DataError
from data_pipeline.files import file_system, is_local
from data_pipeline.prepare.job import Job, Worker, report_name
from data_pipeline.prepare.ledger import Ledger, consolidated, read_ledger, read_text, write_ledger, write_text
from data_pipeline.prepare.recipe import load_recipe
from data_pipeline.prepare.report import write_report
from data_pipeline.tokenizer import Tokenizer

JOB = "job.json"


def prepare(job: Job, processes: int = 1, part: tuple[int, int] = (0, 1)) -> Ledger | None:
    """Prepares what is missing, and writes the ledger once nothing is.

    Args:
      job: what and where to.
      processes: how many work at the same time; 1 is this one.
      part: (i, n): only every n-th shard, from the i-th on, as a job of n machines does it; whoever finds at its end
        that nothing is missing writes the ledger.

    Returns:
      The ledger; None where other parts are still missing.

    Raises:
      DataError: the folder holds something else, or too many records cannot be read.
    """
    worker = Worker(job)
    if found := begin(job, worker.key):
        return found
    missing = [n for n in missing_shards(job.folder, len(worker.shards)) if n % part[1] == part[0]]
    if len(missing) < 2 or processes == 1:
        _one_by_one(worker, missing, job.name)
    else:
        _pool(job, missing, min(processes, len(missing)))
    return None if missing_shards(job.folder, len(worker.shards)) else finish(job, worker.key, len(worker.shards))


def begin(job: Job, key: str) -> Ledger | None:
    """The ledger of a folder in which everything is prepared; marks another one, made if need be, as this job's.

    Raises:
      DataError: it is another job's.
    """
    if is_local(job.folder):
        Path(job.folder).mkdir(parents=True, exist_ok=True)
    text = read_text(job.folder, JOB)
    if text is not None and (known := json.loads(text))["key"] != key:
        raise DataError(
            f"{job.folder} was prepared from other files, with another tokenizer, or otherwise ({known['source']}); "
            "remove it, or name another folder"
        )
    if text is None:
        source = {k: str(v) for k, v in job.source.items()}
        write_text(job.folder, JOB, json.dumps(dict(key=key, source=source, split=job.split)))
    return read_ledger(job.folder)


def missing_shards(folder: str, shards: int) -> list[int]:
    """The shards of a reader that have no report in a folder."""
    if is_local(folder):
        names = os.listdir(folder)
    else:
        system, path = file_system(folder)
        names = [name.rsplit("/", 1)[-1] for name in system.ls(path, detail=False, refresh=True)]
    done = set(names)
    return [n for n in range(shards) if report_name(n) not in done]


def finish(job: Job, key: str, shards: int) -> Ledger:
    """Writes the ledger of a folder where every shard has its report."""
    reports = [json.loads(read_text(job.folder, report_name(n))) for n in range(shards)]
    _check_budget(job, reports)
    signed = load_recipe(job.source.get("recipe", "")).near_duplicates
    ledger = consolidated(job.folder, key, Tokenizer(*job.tokenizer), reports, signed)
    write_report(ledger, f"{job.name} {job.split}")
    write_ledger(ledger)  # last: whoever finds it finds everything else
    return ledger


def _check_budget(job: Job, reports: list[dict[str, Any]]):
    skipped, last = {}, ""
    for report in reports:
        for kind, n in report["skipped"].items():
            skipped[kind] = skipped.get(kind, 0) + n
            last = report["examples"][kind][-1]
    job.check_budget(skipped, last)


def _bar(name: str, **options):
    from tqdm import tqdm

    return tqdm(desc=f"preparing {name}", delay=2, disable=None, dynamic_ncols=True, **options)


def _one_by_one(worker: Worker, missing: list[int], name: str):
    with _bar(name, unit=" documents") as bar:
        for n in missing:
            worker.do(n, bar.update)


_worker: Worker | None = None


def _start(job: Job):
    global _worker
    _worker = Worker(job)


def _do(n: int) -> dict[str, Any]:
    return _worker.do(n)


def _pool(job: Job, missing: list[int], processes: int):
    # Not forked: JAX and TensorFlow have threads.
    with (
        ProcessPoolExecutor(processes, get_context("spawn"), _start, (job,)) as pool,
        _bar(job.name, unit=" shards", total=len(missing)) as bar,
    ):
        reports = []
        try:
            for report in _done(pool, missing):
                reports.append(report)
                documents = sum(report["read"] for report in reports)
                bar.set_postfix(documents=f"{documents:,}", refresh=False)
                bar.update()
                _check_budget(job, reports)
        except BrokenProcessPool as error:
            raise DataError(
                f"a process that prepared {job.name} died, usually for want of memory; the same command continues, "
                "with fewer --processes if need be"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _done(pool: ProcessPoolExecutor, missing: list[int]) -> Iterator[dict[str, Any]]:
    for future in as_completed([pool.submit(_do, n) for n in missing]):
        yield future.result()
