"""`kosmos generate`, and the flags that it shares with other verbs."""

import dataclasses
import json
import re
import sys

import jax

from kosmos_jax.errors import UserError
from kosmos_jax.inference import load
from kosmos_jax.inference.bulk import run, told
from kosmos_jax.inference.options import Options
from kosmos_jax.inference.prompts import parse_prompt
from kosmos_jax.parallel.mesh import AXES


def generate(args):
    """Prints what follows each --prompt, or writes what follows each line of --prompts to --out.

    Raises:
      UserError: a missing file or checkpoint, or an impossible option.
    """
    names = {field.name for field in dataclasses.fields(Options)}
    options = {name: value for name, value in vars(args).items() if name in names}
    Options(**options)  # before the weights: what cannot be is told at once
    if bool(args.prompts) == bool(args.prompt) or bool(args.prompts) != bool(args.out):
        raise UserError("give --prompt TEXT, or --prompts FILE.jsonl with --out FILE.jsonl")
    mesh = mesh_of(args.overrides)
    if args.prompts:
        return run(lambda: load(args.checkpoint, mesh, int8=args.int8), args.prompts, args.out, options)
    prompts = [parse_prompt(text) for text in args.prompt]
    model = load(args.checkpoint, mesh, int8=args.int8)
    alone = jax.process_count() == 1
    if alone and len(prompts) == 1 and not args.json and args.n == args.beams == 1 and sys.stdout.isatty():
        for piece in model.stream(prompts[0], **options):
            print(piece, end="", flush=True)
        return print()
    found = model.complete(prompts, **options)
    for prompt, completions in zip(args.prompt, found, strict=True) if jax.process_index() == 0 else ():
        for completion in completions if args.n > 1 else [completions]:
            print(json.dumps(dict(prompt=prompt, **told([completion]))) if args.json else completion.text)


def pools_of(slots: str) -> dict[tuple[int, int], int]:
    """--slots: "256x8,768x2x4" -> {(256, 1): 8, (768, 4): 2}.

    Raises:
      UserError: it is written otherwise.
    """
    pools = {}
    for part in slots.split(","):
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(x[1-9]\d*)?", part):
            raise UserError(f"--slots {slots}: write LENGTHxSLOTS or LENGTHxSLOTSxBRANCHES, such as 256x8,768x2x4")
        length, count, *branches = map(int, part.split("x"))
        pools[length, branches[0] if branches else 1] = count
    return pools


def mesh_of(overrides: list[str]) -> dict[str, int] | None:
    """The mesh that --config.mesh.AXIS=N flags ask for; None where there are none.

    Raises:
      UserError: another key than a mesh's, or no whole number.
    """
    sizes = {}
    for override in overrides:
        key, _, size = override.removeprefix("--config.").partition("=")
        axis = key.removeprefix("mesh.")
        if key == axis or axis not in AXES:
            raise UserError(
                f"--config.{key}: only --config.mesh.AXIS=N means something here; AXIS is {', '.join(AXES)}"
            )
        if not size.lstrip("-").isdigit():
            raise UserError(f"--config.{key}={size}: a size is a whole number")
        sizes[axis] = int(size)
    return sizes or None
