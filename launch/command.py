"""`kosmos launch`: from a job's description to a scheduler, by way of the planner."""

import argparse
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from kosmos_jax.errors import UserError
from launch.job import JobDescription, load_job
from launch.submit import submit

# Values of --on; each has a module of its name here.
TARGETS = ("slurm", "gke", "tpu-vm", "skypilot", "local")


def launch(args: argparse.Namespace, parse: Callable[[list[str]], argparse.Namespace]) -> int:
    """Writes what the scheduler wants and, without --dry-run, hands it over.

    Args:
      parse: of the command line; the words of a verb -> its arguments.

    Returns:
      The exit status: 0, or what the processes of `--on local` ended with.
    """
    job, target = load_job(args.job), target_module(args.on)
    if args.serve:
        job = job.serving()
        check_flags(job, parse(job.command[1:]))
    text = target.render(job)
    if args.dry_run and not args.out:
        print(text, end="")
        return 0
    path = Path(args.out or f"out/launch/{job.name}.{args.on}{target.SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote {path}")
    if args.dry_run:
        return 0
    if not (args.no_plan or args.serve):
        check_plan(job)
    return submit(job, target, str(path))


def target_module(name: str):
    """The module for a value of --on."""
    try:
        return import_module(f"launch.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise UserError(f"--on {name} writes YAML: pip install 'kosmos_jax[launch]'") from error


def check_flags(job: JobDescription, args: argparse.Namespace):
    """Looks now for what every machine would find in the flags of its `kosmos serve`.

    Raises:
      UserError: slots or a mesh that cannot be.
    """
    from kosmos_jax.inference.command import mesh_of, pools_of
    from kosmos_jax.parallel.mesh import AXES, axis_sizes

    devices = job.place.devices if job.place else job.processes
    try:
        pools_of(args.slots)
        mesh = mesh_of(args.overrides)
        if devices > 1 and not mesh:
            raise UserError(f"without a mesh one of {devices} devices does all the work; add --config.mesh.tensor=N")
        axis_sizes(dict.fromkeys(AXES, 1) | {"data": -1} | (mesh or {}), devices)
    except UserError as error:
        raise UserError(f"job {job.name}: flags of serve: {error}") from error


def check_plan(job: JobDescription):
    """Asks the planner whether the training step fits the chips.

    Raises:
      UserError: it does not.
    """
    if job.kind == "cpu":  # nothing there has a limit that a plan could know
        return
    from kosmos_jax.planning.command import plan

    overrides = [word for word in job.command if word.startswith("--config.")]
    question = dict(config=job.config, topology=job.topology, slices=job.slices, mesh=None, json=None, fit=False)
    if plan(argparse.Namespace(overrides=overrides, **question)):
        words = ["kosmos", "plan", "--fit", "--config", job.config, "--topology", job.topology, *overrides]
        raise UserError(
            f"job {job.name}: not submitted, it does not fit {job.topology}. To see what would: {shlex.join(words)}. "
            "--no-plan submits it all the same"
        )


def add_arguments(parser: argparse.ArgumentParser):
    """Arguments of the verb."""
    add = parser.add_argument
    add("--job", required=True, metavar="FILE", help="a Python file with get_job(), such as launch/jobs/demo_cpu.py")
    add("--on", required=True, choices=TARGETS, help="what runs it")
    add("--serve", action="store_true", help="serve what the job trained, instead of training")
    add("--dry-run", action="store_true", help="only print what would be submitted, or write it to --out")
    add("--out", metavar="FILE", help="where to write it; default: out/launch/NAME.TARGET.SUFFIX")
    add("--no-plan", action="store_true", help="submit without compiling the training step for the topology first")
