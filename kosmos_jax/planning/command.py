"""The verb `kosmos plan`."""

import json
from pathlib import Path

from kosmos_jax.config import load_config
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.topology import parse

EXIT_DOES_NOT_FIT = 1


def plan(args) -> int:
    """Prints what a run would need; status 0 if it fits the hardware, 1 if not."""
    config, topology = load_config(args.config, args.overrides), parse(args.topology, args.slices)
    # After the arguments were read: a mistyped one should not have to wait for JAX.
    from kosmos_jax.planning.devices import examine_only
    from kosmos_jax.planning.isolated import isolated_plan
    from kosmos_jax.planning.report import report
    from kosmos_jax.planning.search import fit, plan_by_rule

    examine_only()
    by_rule = args.mesh == "auto"
    if args.fit:
        made = fit(config, topology, None if by_rule else args.mesh)
    else:
        made = plan_by_rule(config, topology) if by_rule else isolated_plan(config, topology, args.mesh)
    print(report(made))
    if made.fits and (args.fit or by_rule):
        print("\nto run it so:\n  " + " ".join(overrides(made)))
    if args.json:
        Path(args.json).write_text(json.dumps(made.as_dict(), indent=2) + "\n")
    return 0 if made.fits else EXIT_DOES_NOT_FIT


def plan_inference(args) -> int:
    """Prints what a mesh holds and how fast it can generate at most; status 0 if it fits, 1 if not.

    Raises:
      UserError: options that cannot be.
    """
    config, topology = load_config(args.config, args.overrides), parse(args.topology, args.slices)
    if args.fit or args.mesh == "auto":
        raise UserError(
            "--inference has no --fit and no --mesh auto: without a mesh, heads are split as far as they go"
        )
    from kosmos_jax.inference.command import pools_of
    from kosmos_jax.planning.devices import examine_only
    from kosmos_jax.planning.isolated import isolated_inference_plan
    from kosmos_jax.planning.report import inference_report

    pools = pools_of(args.slots) if args.slots else {}
    if any(branches > 1 for _, branches in pools):
        raise UserError(f"--slots {args.slots}: a plan is of slots with one branch, written LENGTHxSLOTS")
    slots = {length: count for (length, _), count in pools.items()} or None
    examine_only()
    mesh = args.mesh or any(override.startswith("--config.mesh.") for override in args.overrides)
    made = isolated_inference_plan(config, topology, mesh, slots, args.int8)
    print(inference_report(made))
    if args.json:
        Path(args.json).write_text(json.dumps(made.as_dict(), indent=2) + "\n")
    return 0 if made.fits else EXIT_DOES_NOT_FIT


def overrides(made) -> list[str]:
    """The flags for `kosmos train` that give a plan's mesh and settings."""
    values = {f"mesh.{axis}": size for axis, size in made.mesh.items()}
    values |= {"model.remat": made.settings["remat"], "training.microbatches": made.settings["microbatches"]}
    return [f"--config.{key}={value}" for key, value in values.items()]
