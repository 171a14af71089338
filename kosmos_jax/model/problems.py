"""What cannot be in `config.model`: single values, and values that do not fit each other."""

from collections.abc import Iterator

from kosmos_jax.checks import at_least, below_one, heads_problems, not_among
from kosmos_jax.modality import KOSMOS2_TAGS, NAMES, TAGS
from kosmos_jax.model import perception

DTYPES = ("auto", "float32", "bfloat16")
REMAT = ("none", "dots", "full")
ATTENTION = ("auto", "reference", "splash", "triton")
POSITIONS = ("xpos", "sinusoidal", "both")
INITS = ("torchscale", "magneto")
# Attributes of `Kosmos`.
TAKEN = ("config", "constrain", "decoder", "dtype", "embed", "embedding", "logits", "modalities", "perceive")


def keys(model) -> list[str]:
    """The keys that the perception section must have; the others are those of configs/kosmos1.py."""
    return [
        f"perception.{name}.{key}" for name, section in model.perception.items() for key in perception.keys(section)
    ]


def value_problems(model) -> Iterator[str]:
    """Values that cannot be, whatever the others are."""
    text = model.text
    yield from at_least("model", model, {1: ("scan_unroll",)})
    yield from at_least("model.text", text, {1: ("vocab_size", "width", "layers", "heads", "ffn", "max_positions")})
    yield from below_one("model.text", text, ("dropout", "attention_dropout"))
    yield from not_among("model.dtype", model.dtype, DTYPES)
    yield from not_among("model.remat", model.remat, REMAT)
    yield from not_among("model.text.attention", text.attention, ATTENTION)
    yield from not_among("model.text.positions", text.positions, POSITIONS)
    yield from not_among("model.text.init", text.init, INITS)
    for name, section in model.perception.items():
        key = f"model.perception.{name}"
        tagged = name not in NAMES and f"<{name}>" in TAGS + KOSMOS2_TAGS
        if name in TAKEN or tagged or not name.isidentifier():
            yield f"{key}: no modality can have this name; something else has it, or it is no name of Python"
        yield from (f"{key}.{message}" for message in perception.value_problems(section))


def problems(model) -> Iterator[str]:
    """Values that do not fit each other, once each can be by itself."""
    text = model.text
    yield from heads_problems("model.text", text.heads, text.width, even=text.positions != "sinusoidal")
    if text.positions != "xpos" and text.width % 2:
        yield f"model.text.width is {text.width}; sinusoidal positions need an even width"
    for name, section in model.perception.items():
        yield from (f"model.perception.{name}.{message}" for message in perception.problems(section, text.width))
