"""The `kosmos` command: a table of verbs. Whatever is slow to import is imported by the verb that needs it."""

import argparse
import difflib
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from kosmos_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USAGE, PassingError, UserError
from kosmos_jax.logs import set_up_logging
from kosmos_jax.paths import storage_errors

OVERRIDE = "--config."


def _stop_at_once(*_):
    os.write(2, b"kosmos train: stopped by SIGTERM while no step was being made; the same command resumes from there\n")
    os._exit(EXIT_PREEMPTED)


def _train(args) -> int:
    began = time.time()
    # As the first process of a container it would not be ended by the signal. Later the trainer catches it, or JAX.
    signal.signal(signal.SIGTERM, _stop_at_once)
    # The terminal went away; nohup would have it ignored.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until there are steps to trace
    faulthandler.register(signal.SIGUSR1)  # kill -USR1 shows what every thread does, and the run continues
    from kosmos_jax.config import load_config

    # First of all: a mistyped key should not have to wait for JAX.
    config = load_config(args.config, args.overrides)
    from kosmos_jax.evaluation.tasks import check_names, during_training
    from kosmos_jax.parallel import distributed
    from kosmos_jax.programs import keep_programs
    from kosmos_jax.training.trainer import train

    keep_programs()
    check_names(config.evaluation.tasks)
    distributed.start(args.coordinator, args.processes, args.process_id, config.training.join_seconds)
    try:
        return train(config, args.workdir, during_training(), began)
    except Exception as error:
        distributed.leave_at_once(error)
        raise


def _report(args) -> None:
    from kosmos_jax.training.report import report

    report(args)


def _report_arguments(parser):
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of `kosmos train`")


def _train_arguments(parser):
    parser.add_argument("--config", required=True, metavar="FILE", help="a Python file with get_config()")
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="for checkpoints and metrics; resumed if it has any"
    )
    _process_arguments(parser)


def _int8_argument(parser):
    parser.add_argument(
        "--int8",
        action="append",
        default=[],
        choices=("weights", "cache"),
        help="hold the decoder's weights, or keys and values, in eight bits; may be repeated",
    )


def _process_arguments(parser):
    group = parser.add_argument_group("several processes, where neither Slurm, Open MPI nor a TPU pod says it")
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--processes", type=int, default=0, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, default=-1, metavar="I", help="which one this is, from 0")


def _generate(args) -> int:
    from kosmos_jax.inference.command import generate

    return _together(generate, args)


def _together(run, args) -> int:
    """Runs a verb as one of the processes of a job, if there are several."""
    from kosmos_jax.parallel import distributed

    distributed.start(args.coordinator, args.processes, args.process_id, verb=args.verb)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with several processes JAX catches it, for those who ask
    try:
        return run(args)
    except Exception as error:
        distributed.leave_at_once(error, args.verb)
        raise


def _generate_arguments(parser):
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a workdir, its checkpoints/, or one step's folder")
    add(
        "--prompt",
        default=[],
        action="append",
        metavar="TEXT",
        help="text with <image:PATH> or <audio:PATH> in it; may be repeated",
    )
    add("--prompts", default="", metavar="FILE", help="JSON lines with a prompt in each, see docs/inference.md")
    add("--out", default="", metavar="FILE", help="JSON lines with the answers to --prompts; continued if it is there")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    add("--n", type=int, default=1, metavar="N", help="how many texts for each prompt; default: 1")
    add("--beams", type=int, default=1, metavar="N", help="width of the beam search; default: 1, none")
    add("--temperature", type=float, default=0.0, metavar="T", help="default: 0, always the most likely token")
    add("--top-k", type=int, default=0, metavar="N", help="sample among the N most likely tokens; default: 0, all")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample among the most likely that hold a share P; default: 1",
    )
    add(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="a beam's score is divided by length^X; default: 1",
    )
    add(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="sample among tokens with P of the likeliest's probability",
    )
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="of tokens in the text; default: 1, none")
    add("--no-repeat-ngram", type=int, default=0, metavar="N", help="no N tokens twice in a row; default: 0, none")
    add("--choice", action="append", default=None, metavar="TEXT", help="one of the only texts that may come")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    add("--seed", type=int, default=0, metavar="N", help="of sampling; default: 0")
    add("--json", action="store_true", help="print one JSON object for each prompt")
    _int8_argument(parser)
    _process_arguments(parser)


def _serve(args) -> int:
    from kosmos_jax.serving.command import serve

    return _together(serve, args)


def _serve_arguments(parser):
    from kosmos_jax.serving.command import add_arguments

    add_arguments(parser)
    _int8_argument(parser)
    _process_arguments(parser)


def _evaluate(args) -> int:
    from kosmos_jax.evaluation.command import evaluate

    return evaluate(args)


def _evaluate_arguments(parser):
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a workdir, its checkpoints/, or one step's folder")
    add("--config", metavar="FILE", help="what to evaluate; default: the config inside the checkpoint")
    add("--split", default="test", choices=("train", "validation", "test"), help="default: test")


def _export(args) -> int:
    from kosmos_jax.interop.command import export

    return export(args)


def _export_arguments(parser):
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a workdir, its checkpoints/, or one step's folder")
    add(
        "--to",
        required=True,
        choices=("hf-kosmos2", "hf-remote-code", "torch"),
        help="see docs/pytorch.md",
    )
    add("--out", required=True, metavar="DIR", help="a new folder")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="default: float32")
    add("--max-shard-size", default="5GB", metavar="SIZE", help="of one file, such as 500MB; default: 5GB")
    add("--verify", action="store_true", help="load the result in PyTorch and compare its numbers with JAX's")


def _import(args) -> int:
    from kosmos_jax.interop.command import import_

    return import_(args)


def _import_arguments(parser):
    add = parser.add_argument
    kinds = ("hf-kosmos2", "clip", "whisper", "hf-remote-code", "torch")
    add("--from", required=True, choices=kinds, dest="kind", help="see docs/pytorch.md")
    add("--source", required=True, metavar="PATH", help="a file of weights, or a folder with them")
    add("--out", required=True, metavar="DIR", help="a new workdir")
    add(
        "--config",
        metavar="FILE",
        help="for what the weights do not say; default: configs/kosmos2.py (clip: kosmos1.py)",
    )
    add(
        "--tokenizer",
        metavar="PATH",
        help="SentencePiece model, tokenizer.json or folder; default: beside the weights",
    )
    add("--vocab-size", type=int, default=0, metavar="N", help="drop ids at the end, or add some; default: as it is")


def _verify(args) -> None:
    from kosmos_jax.verify import verify

    verify(args)


def _verify_arguments(parser):
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a workdir, its checkpoints/, or one step's folder")


def _plan(args) -> int:
    from kosmos_jax.planning.command import plan, plan_inference

    if not args.inference and (args.slots or args.int8):
        raise UserError("--slots and --int8 are for --inference")
    return plan_inference(args) if args.inference else plan(args)


def _plan_arguments(parser):
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="a Python file with get_config()")
    add("--topology", required=True, metavar="CHIP:SHAPE", help="v5p:4x4x4, v5e:16x16, h100:8x8 (hosts x GPUs)")
    add("--slices", type=int, default=1, metavar="N", help="TPU slices; default: 1")
    add("--mesh", default="", metavar="NAME", help="fsdp, hsdp, fsdp_tp, ..., or auto; default: the config's")
    add("--fit", action="store_true", help="search remat, microbatches and mesh for the fastest that fits")
    add("--json", metavar="FILE", help="write the figures there too")
    add("--inference", action="store_true", help="plan generation: slots that fit, and bounds for tokens a second")
    add("--slots", default="", metavar="LENGTHxN,...", help="256x32,768x8; default: as many as fit of 256, 768, 2048")
    _int8_argument(parser)


def _launch(args) -> int:
    from launch.command import launch

    return launch(args, parse)


def _launch_arguments(parser):
    from launch.command import add_arguments

    add_arguments(parser)


def _data(args) -> int:
    from data_pipeline.command import data
    from kosmos_jax.config import load_config

    return data(load_config(args.config, args.overrides), args)


def _data_arguments(parser):
    from data_pipeline.command import add_arguments

    add_arguments(parser)


class Verb(NamedTuple):
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    has_config: bool = False


VERBS = {
    "train": Verb("train a model, or resume a run that was stopped", _train_arguments, _train, has_config=True),
    "data": Verb("prepare corpora for training, and see what is in them", _data_arguments, _data, has_config=True),
    "report": Verb("print where the time of a run went", _report_arguments, _report),
    "generate": Verb("continue prompts of text and media", _generate_arguments, _generate, has_config=True),
    "serve": Verb("answer prompts over HTTP, as OpenAI's API does", _serve_arguments, _serve, has_config=True),
    "eval": Verb("measure a checkpoint on held-out data", _evaluate_arguments, _evaluate, has_config=True),
    "export": Verb("write a checkpoint for PyTorch", _export_arguments, _export),
    "verify": Verb("check that a checkpoint is what was written", _verify_arguments, _verify),
    "plan": Verb("compile a run for hardware that you do not have", _plan_arguments, _plan, has_config=True),
    "launch": Verb("submit a training job, or a server, to a scheduler", _launch_arguments, _launch),
    "import": Verb("make a checkpoint of published weights", _import_arguments, _import, has_config=True),
}


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command, and those of the verbs by name."""
    parser = argparse.ArgumentParser(prog="kosmos", description="KOSMOS-1 for JAX.", allow_abbrev=False)
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB")
    parsers = {}
    for name, verb in VERBS.items():
        epilog = (
            f"{OVERRIDE}section.key=value replaces a value of the config; may be repeated" if verb.has_config else None
        )
        parsers[name] = verbs.add_parser(
            name, help=verb.summary, description=verb.summary, epilog=epilog, allow_abbrev=False
        )
        verb.add_arguments(parsers[name])
    return parser, parsers


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of a verb, and `overrides` if it has a config. Errors print the usage and leave with status 2."""
    parser, parsers = make_parsers()
    if not argv:
        parser.print_help()
        parser.exit(EXIT_USAGE)
    # Taken out first: argparse would not keep a value with spaces together with its key.
    overrides = [argument for argument in argv if argument.startswith(OVERRIDE)]
    others = [argument for argument in argv if not argument.startswith(OVERRIDE)]
    if argv[0] in VERBS:
        _check_words(parsers[argv[0]], VERBS[argv[0]], overrides, others[1:])
    elif not argv[0].startswith("-"):
        parser.error(f"no verb {argv[0]!r}{_did_you_mean(argv[0], VERBS)}")
    args = parser.parse_args(others)
    args.overrides = overrides
    return args


def _check_words(parser, verb: Verb, overrides: list[str], others: list[str]):
    """Finds mistyped flags before argparse does, which would complain of the flag that is missing instead."""
    if overrides and not verb.has_config:
        parser.error(f"this verb has no config, so {overrides[0]} means nothing to it")
    for override in overrides:
        if "=" not in override:
            parser.error(f"{override} has no value; write {override}=VALUE, with an equals sign")
    for word in others:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in parser._option_string_actions:
            parser.error(f"unknown flag {flag}{_did_you_mean(flag, parser._option_string_actions)}")


def _did_you_mean(word: str, words) -> str:
    nearest = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb.

    Returns:
      The exit status: 0, 2 for what the user can put right, or what the verb says.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    set_up_logging()
    try:
        return VERBS[args.verb].run(args) or 0
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PassingError.status
    except (UserError, *storage_errors()) as error:
        if os.environ.get("KOSMOS_TRACEBACK"):
            raise
        print(f"kosmos {args.verb}: error: {error}", file=sys.stderr)
        return getattr(error, "status", PassingError.status)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
