"""Multiplications and additions that a training step needs, counted for each tower by its formula.

A multiply-add counts 2. The backward pass costs twice the forward pass, and nothing below the lowest trainable
parameter. Attention is causal, so a token looks at half a row on average. What remat computes again does not count.
"""


def _layer(width: int, ffn: int) -> float:
    """The matrix products of one transformer layer, for one token."""
    return 2 * (4 * width**2 + 2 * width * ffn)


def decoder_flops(text, seq_len: int) -> float:
    """Forward, for one token of a row of `seq_len`, the output head included."""
    attention = 2 * 2 * text.width * seq_len / 2
    return text.layers * (_layer(text.width, text.ffn) + attention) + 2 * text.width * text.vocab_size


def vision_flops(vision) -> dict[str, float]:
    """Forward, for one image, split into the two stacks that freeze separately."""
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    layer = patches * (_layer(vision.width, vision.ffn) + 2 * 2 * vision.width * patches)
    embed = 2 * (patches - 1) * 3 * vision.patch_size**2 * vision.width
    return {
        "vision/trunk": (vision.layers - vision.top_layers) * layer + embed,
        "vision/top": vision.top_layers * layer,
    }


def connector_flops(model) -> float:
    """Forward, for one image."""
    vision, connector, width = model.vision, model.connector, model.text.width
    patches, queries = (vision.image_size // vision.patch_size) ** 2 + 1, connector.tokens
    context = patches + queries
    dense = 2 * patches * vision.width * width
    attention = 2 * (2 * queries + 2 * context) * width**2 + 2 * 2 * queries * context * width
    if connector.kind == "xconnector":
        return dense + attention
    return dense + connector.layers * (attention + 2 * queries * 8 * width**2)


def step_flops(model, trainable_paths, seq_len: int, tokens: float, images: float) -> dict[str, float]:
    """One training step, by tower.

    Args:
      model: config.model.
      trainable_paths: paths of the parameters that train.
      seq_len: length of a row.
      tokens, images: how many real ones (no padding) the step read.

    Returns:
      tower -> FLOPs: "decoder", "connector", "vision/trunk", "vision/top".
    """
    parts = [
        *((name, images * flops) for name, flops in vision_flops(model.vision).items()),
        ("connector", images * connector_flops(model)),
        ("decoder", tokens * decoder_flops(model.text, seq_len)),
    ]
    factor, result = 1, {}
    for name, forward in parts:  # from the pixels upwards: once something trains, all above it has a backward pass
        owned = [p for p in trainable_paths if p.startswith(name) or (name == "decoder" and p == "embedding")]
        factor = 3 if owned or factor == 3 else 1
        result[name] = factor * forward
    return result
