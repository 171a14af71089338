"""`kosmos eval`."""

import importlib.util
from pathlib import Path

from kosmos_jax.checkpoint import restore, step_directory
from kosmos_jax.config import apply_overrides, load_config
from kosmos_jax.evaluation.pictures import draw_answers, draw_losses
from kosmos_jax.evaluation.report import table, write_json
from kosmos_jax.evaluation.tasks import run_tasks
from kosmos_jax.inference.generator import Generator
from kosmos_jax.programs import keep_programs


def evaluate(args):
    """Prints the table of the tasks; writes results.json and, where matplotlib is installed, pictures in the workdir.

    The model is always the one of the checkpoint. --config says what to measure: its `evaluation` and `data` sections.

    Raises:
      UserError: no checkpoint, no such task, or data that a task needs is not there.
    """
    keep_programs()
    restored = restore(args.checkpoint)
    config = (
        load_config(args.config, args.overrides) if args.config else apply_overrides(restored.config, args.overrides)
    )
    generator = Generator(restored.config.model, restored.params, restored.tokenizer)
    results = run_tasks(generator, config, args.split)
    print(f"{restored.directory}, step {restored.step}, split {args.split}\n")
    print(table(results))
    print("\n" + "\n".join(f"wrote {path}" for path in write_files(results, restored, args.split)))


def write_files(results, restored, split: str) -> list[Path]:
    """results.json, answers.png and losses.png in the workdir of a checkpoint; returns those it wrote.

    Args:
      results: name -> tasks.Result.
      restored: the checkpoint that was evaluated.
      split: of the data.
    """
    workdir = workdir_of(restored.directory)
    written = [workdir / "results.json"]
    write_json(results, written[0], checkpoint=str(restored.directory), step=restored.step, split=split)
    if importlib.util.find_spec("matplotlib"):
        if any(result.examples for result in results.values()):
            written.append(workdir / "answers.png")
            draw_answers(results, written[-1])
        if (workdir / "metrics.jsonl").exists():
            written.append(workdir / "losses.png")
            draw_losses(workdir / "metrics.jsonl", written[-1])
    return written


def workdir_of(checkpoint) -> Path:
    """The folder that holds `checkpoints/`, given any of the forms of --checkpoint."""
    return step_directory(checkpoint).parent.parent
