"""`kosmos generate`."""

import dataclasses
import json

from kosmos_jax.inference import load
from kosmos_jax.inference.prompts import parse_prompt


def generate(args):
    """Prints what follows each --prompt: the text, or with --json one object a line.

    Raises:
      UserError: a missing file or checkpoint, or an impossible option.
    """
    prompts = [parse_prompt(text) for text in args.prompt]  # before the weights: a wrong path is told at once
    completions = load(args.checkpoint).complete(
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        beams=args.beams,
        length_penalty=args.length_penalty,
        stop=args.stop,
        seed=args.seed,
    )
    for prompt, completion in zip(args.prompt, completions, strict=True):
        told = {name: value for name, value in dataclasses.asdict(completion).items() if value is not None}
        print(json.dumps(dict(prompt=prompt, **told)) if args.json else completion.text)
