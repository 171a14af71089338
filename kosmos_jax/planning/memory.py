"""What a device's memory holds during a step, by kind."""

import math
import re

import jax

from kosmos_jax.training.feed import DEPTH

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def shard_bytes(tree, shardings) -> int:
    """Bytes of a tree of arrays on one device."""
    shapes = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in shapes)


def argument_bytes(step, batch, batch_shardings) -> dict[str, int]:
    """The step's arguments on one device, as their shapes and shardings have them; padding comes on top.

    Args:
      step: training.compile.Step.
      batch: of jax.ShapeDtypeStruct.
      batch_shardings: the same tree of shardings.
    """
    state, shardings = step.abstract, step.shardings
    kinds = ("parameters", "optimizer", "average")
    sizes = {kind: shard_bytes(getattr(state, kind), getattr(shardings, kind)) for kind in kinds}
    return sizes | {"batch": sum(shard_bytes(batch[name], batch_shardings[name]) for name in batch)}


def by_kind(stats, arguments: dict[str, int]) -> dict[str, int]:
    """All that is in a device's memory while the step runs, from `compiled.memory_analysis()` and `argument_bytes`.

    Returns:
      kind -> bytes. "padding" is what the device's layouts add to the arguments; "outputs" are those that do not take
      the place of an argument; "temporaries" are activations, gradients and whatever else lives inside a step;
      "waiting batches" are those that the feed has sent ahead.
    """
    return with_arguments(
        arguments,
        padding=max(0, stats.argument_size_in_bytes - sum(arguments.values())),
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


def refused(message: str, arguments: int) -> int | None:
    """Bytes of temporaries, as the compiler says that memory does not suffice; None if it says something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    if temporaries := re.search(r"HLO temporaries \(([\d.]+)([BKMGT])", message):
        return _bytes(temporaries)
    total = re.search(r"Used ([\d.]+)([BKMGT]) of", message)
    return max(0, _bytes(total) - arguments) if total else 0


def _bytes(found: re.Match) -> int:
    return round(float(found[1]) * _UNITS[found[2]])


def with_arguments(arguments: dict[str, int], **inside: int) -> dict[str, int]:
    """`by_kind` of what is known: the arguments, what is `inside` a step, and the batches that wait."""
    known = {kind: size for kind, size in arguments.items() if size}
    return known | inside | {"waiting batches": DEPTH * arguments["batch"]}
