"""Multiplications and additions that a training step needs, counted for each tower by its formula.

A multiply-add counts 2. The backward pass costs twice the forward pass, and nothing below the lowest trainable
parameter. Attention is causal, so a token looks at half a row on average. What remat computes again does not count.
"""

from collections.abc import Mapping

from kosmos_jax.modality import modalities
from kosmos_jax.model import perception
from kosmos_jax.model.layers import layer_flops


def decoder_flops(text, seq_len: int) -> float:
    """Forward, for one token of a row of `seq_len`, the output head included."""
    return text.layers * layer_flops(text.width, text.ffn, seq_len / 2) + 2 * text.width * text.vocab_size


def step_flops(model, trainable_paths, seq_len: int, tokens: float, items: Mapping[str, float]) -> dict[str, float]:
    """One training step, by tower.

    Args:
      model: config.model.
      trainable_paths: paths of the parameters that train.
      seq_len: length of a row.
      tokens: how many real ones (no padding) the step read.
      items: how many real ones, by modality.

    Returns:
      tower -> FLOPs: "NAME/encoder/trunk", "NAME/encoder/top", "NAME/connector" of each modality, "decoder".
    """
    result, any_trains = {}, False

    def add(tower, forward, below_trains, owned):
        # Once something trains, all above it has a backward pass.
        trains = below_trains or any(path.startswith(owned) for path in trainable_paths)
        result[tower] = (3 if trains else 1) * forward
        return trains

    for modality in modalities(model):
        trains = False
        for part, forward in perception.flops(model.perception[modality.name], model.text.width).items():
            tower = f"{modality.name}/{part}"
            trains = add(tower, items[modality.name] * forward, trains, f"{tower}/")
        any_trains |= trains
    add("decoder", tokens * decoder_flops(model.text, seq_len), any_trains, ("decoder/", "embedding"))
    return result
