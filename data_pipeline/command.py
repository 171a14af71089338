"""The verb `kosmos data`: prepare sources, see what is in them, train a tokenizer."""

import json
import os
from pathlib import Path

from data_pipeline.documents import DataError
from data_pipeline.readers import SPLITS

ACTIONS = ("prepare", "stats", "inspect", "tokenizer")


def add_arguments(parser):
    add = parser.add_argument
    add("action", choices=ACTIONS, help="prepare sources, count or show what is prepared, train a tokenizer")
    add("--config", required=True, metavar="FILE", help="a Python file with get_config()")
    add("--workdir", default="", metavar="DIR", help="of the run: what has no folder of its own lies in its cache")
    add("--source", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    add("--split", action="append", default=[], choices=SPLITS, help="only this one; may be repeated")
    add("--recipe", default="", metavar="FILE:NAME", help="prepare: filters, a function in a Python file")
    add("--media", default="", metavar="MODE", help="prepare: inline, reference or original; default: the config's")
    add("--processes", type=int, default=0, metavar="N", help="prepare: how many at a time; default: one a core")
    add("--part", default="", metavar="I/N", help="prepare: every N-th shard from I on; default: Slurm's array, or all")
    add("--runner", default="pool", choices=("pool", "beam"), help="prepare: processes of this machine, or Apache Beam")
    add(
        "--beam",
        action="append",
        default=[],
        metavar="OPTION",
        help="prepare: an option of Beam's, --beam=--runner=...",
    )
    add("--step", type=int, default=0, metavar="N", help="inspect: which batch; default: 0")
    add("--rows", type=int, default=8, metavar="N", help="inspect: rows of each source; default: 8")
    add("--out", default="", metavar="FILE", help="inspect: the page, FILE.html; tokenizer: the model")
    add("--characters", type=int, default=0, metavar="N", help="tokenizer: how much text it is trained on")
    add("--json", action="store_true", help="stats: one JSON object")


def data(config, args) -> int:
    """Runs one action.

    Args:
      config: the complete config.
      args: of the verb.
    """
    if unknown := [name for name in args.source if name not in config.data.sources]:
        raise DataError(f"--source {unknown[0]}: data.sources has {', '.join(sorted(config.data.sources))}")
    return {"prepare": _prepare, "stats": _stats, "inspect": _inspect, "tokenizer": _tokenizer}[args.action](
        config, args
    )


def cache_of(config, args) -> Path:
    """Where what has no folder of its own lies: as in `kosmos train`."""
    if not (config.data.cache or args.workdir):
        raise DataError("name the run's folder with --workdir, or set data.cache: prepared data are kept there")
    return Path(config.data.cache or Path(args.workdir) / "cache")


def _prepare(config, args) -> int:
    from data_pipeline.pipeline import make_tokenizer
    from data_pipeline.prepare.run import prepare
    from data_pipeline.prepare.sources import make_job

    cache = cache_of(config, args)
    tokenizer = make_tokenizer(config, cache)
    names, part = args.source or sorted(config.data.sources), part_of(args.part)
    for name in names:
        changes = {key: value for key in ("recipe", "media") if (value := getattr(args, key))}
        for split in args.split or [
            split for split in SPLITS if split in config.data.sources[name].get("splits", SPLITS)
        ]:
            job = make_job(config, name, split, tokenizer, cache, **changes)
            if args.runner == "beam":
                from data_pipeline.prepare.beam import prepare_with_beam

                ledger = prepare_with_beam(job, args.beam)
            else:
                ledger = prepare(job, args.processes or len(os.sched_getaffinity(0)), part)
            print("\n".join(told(job, ledger)), flush=True)
    return 0


def part_of(given: str) -> tuple[int, int]:
    """(i, n) of --part, or of a Slurm array whose indices begin at 0; (0, 1) where there is neither."""
    if given:
        i, _, n = given.partition("/")
    else:
        i, n = os.environ.get("SLURM_ARRAY_TASK_ID", "0"), os.environ.get("SLURM_ARRAY_TASK_COUNT", "1")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise DataError(f"--part {given or f'{i}/{n}'}: give I/N with I from 0 to N - 1")
    return int(i), int(n)


def told(job, ledger) -> list[str]:
    """What is prepared, a line or more."""
    if ledger is None:
        return [f"{job.name} {job.split}: this part is done, others are not; the last one writes the ledger"]
    items = {kind: sum(each.get(kind, 0) for each in ledger.items) for kind, _ in ledger.modalities}
    counts = [f"{sum(ledger.documents):,} documents", f"{sum(ledger.tokens):,} tokens"]
    counts += [f"{n:,} of {kind}" for kind, n in items.items() if n]
    lines = [f"{job.name} {job.split}: {', '.join(counts)} in {ledger.folder}"]
    lines += [
        f"  {each['name']} rejected {each['rejected']:,} and changed {each['changed']:,} of {ledger.read:,}"
        for each in ledger.filters
        if each["name"] != "near_duplicates"
    ]
    lines += [f"  {ledger.duplicates:,} near-duplicates of earlier documents"] if ledger.duplicates else []
    lines += [f"  {n:,} left out ({kind}), such as: {ledger.examples[kind][0]}" for kind, n in ledger.skipped.items()]
    return lines


def _mixtures(config, args):
    from data_pipeline.mixture import Mixture
    from data_pipeline.pipeline import make_tokenizer

    cache = cache_of(config, args)
    for split in args.split or ["train"]:
        yield Mixture(config, make_tokenizer(config, cache), split, cache)


def _stats(config, args) -> int:
    from data_pipeline.statistics import as_text, statistics

    found = {mixture.split: statistics(mixture) for mixture in _mixtures(config, args)}
    print(json.dumps(found) if args.json else "\n\n".join(f"{split}\n{as_text(each)}" for split, each in found.items()))
    return 0


def _inspect(config, args) -> int:
    from data_pipeline.inspect_page import inspect

    if not args.out.endswith(".html"):
        raise DataError("inspect needs --out FILE.html")
    (mixture,) = list(_mixtures(config, args))[:1]
    inspect(mixture, args.step, args.out, args.rows)
    return 0


def _tokenizer(config, args) -> int:
    from data_pipeline.prepare.tokenizer_mix import train_tokenizer

    if not args.out:
        raise DataError("tokenizer needs --out FILE.model")
    train_tokenizer(config, args.source or sorted(config.data.sources), args.characters, args.out)
    return 0
