"""The pre-LN transformer blocks that encoders share, in two stacks: `trunk`, and the last `top_layers` in `top`.

The paper trains only CLIP's last layer, and a rule for frozen parameters sees all of a stack or nothing of it.
"""

from collections.abc import Callable, Iterator

from flax import nnx

from kosmos_jax.checks import at_least, heads_problems
from kosmos_jax.model.layers import layer_flops, scan_layers, stack


class TwoStacks(nnx.Module):
    """An encoder with such blocks; each has `norm1`, `attention`, `norm2`, `fc1` and `fc2`."""

    STACKS = ("trunk", "top")

    def build_stacks(self, make_block: Callable, config, rngs: nnx.Rngs):
        """Makes `trunk` and `top`; None where one has no layers.

        Args:
          make_block: of rngs.
          config: the `encoder` section of a modality, with `layers` and `top_layers`.
          rngs: of the initial values.
        """
        for name, count in (("trunk", config.layers - config.top_layers), ("top", config.top_layers)):
            setattr(self, name, stack(make_block, count, rngs) if count else None)

    def through_stacks(self, x_NPd, activation: Callable, remat: str, unroll: int):
        """float[N, P, d] through all blocks; `remat` and `unroll` as in `scan_layers`."""

        def call(block, x_NPd, _):
            x_NPd = x_NPd + block.attention(block.norm1(x_NPd))
            x_NPd = x_NPd + block.fc2(activation(block.fc1(block.norm2(x_NPd))))
            return self.constrain(x_NPd, "items_npd")

        for stacked in (self.trunk, self.top):
            if stacked is not None:
                x_NPd = scan_layers(stacked, x_NPd, remat=remat, unroll=unroll, call=call)
        return x_NPd


def stack_flops(config, patches: int, below: float) -> dict[str, float]:
    """Forward, for one item, by stack from the input upward.

    Args:
      config: the `encoder` section of a modality.
      patches: P.
      below: of what comes before the blocks; it counts to the trunk.
    """
    block = patches * layer_flops(config.width, config.ffn, patches)
    return {"trunk": (config.layers - config.top_layers) * block + below, "top": config.top_layers * block}


def size_problems(config, *more: str) -> Iterator[str]:
    """What cannot be in sizes that all such encoders have, and in `more`; single values before what must agree."""
    sizes = {1: ("width", "layers", "heads", "ffn", *more), 0: ("top_layers",)}
    if found := list(at_least("encoder", config, sizes)):
        yield from found
        return
    yield from heads_problems("encoder", config.heads, config.width)
    if config.top_layers > config.layers:
        yield f"encoder.top_layers is {config.top_layers}; the encoder has {config.layers} layers in all"
