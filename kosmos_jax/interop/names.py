"""Our parameters under the names of our PyTorch module, and those under the names that others use.

The first step is mechanical: "decoder/layers/fc1/kernel" float[L, D, F] is L tensors "decoder.layers.{i}.fc1.weight"
[F, D]. Of the vision tower's two stacks, `trunk` and `top`, PyTorch has one list. The second step is a chain of
substitutions for each foreign format; every format is a function from our PyTorch name to its own.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from einops import rearrange

from kosmos_jax.model import STACKS

STACKED = re.compile(rf"({'|'.join(STACKS)})/(.+)")


class Place(NamedTuple):
    """Where a PyTorch tensor lies among our parameters.

    Attributes:
      path: of the parameter, e.g. "decoder/layers/fc1/kernel".
      layer: its index in the stack; None for what is not stacked.
      transposed: whether PyTorch has the axes the other way round, as for every linear layer.
      shape: in PyTorch.
    """

    path: str
    layer: int | None
    transposed: bool
    shape: tuple[int, ...]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array of this place (one layer of it) as PyTorch has it, contiguous."""
        return np.ascontiguousarray(array.T if self.transposed else array)


def torch_names(shapes: Mapping) -> dict[str, Place]:
    """The tensors of our PyTorch module (torch_files/kosmos_torch.py) for parameters of these shapes.

    Args:
      shapes: path -> anything with a `shape`; see kosmos_jax.model.abstract_model.
    """
    trunk = shapes["vision/trunk/norm1/scale"].shape[0] if "vision/trunk/norm1/scale" in shapes else 0
    places = {}
    for path, leaf in shapes.items():
        stacked = STACKED.fullmatch(path)
        layers = range(leaf.shape[0]) if stacked else [None]
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        kernel = path.endswith("/kernel")
        for layer in layers:
            if stacked:
                stack, rest = stacked.groups()
                index = layer + trunk if stack == "vision/top" else layer
                name = f"{stack.split('/')[0]}/layers/{index}/{rest}"
            else:
                name = path
            name = re.sub(r"/(kernel|scale)$|(?<=^embedding)$", "/weight", name).replace("/", ".")
            places[name] = Place(path, layer, kernel, shape[::-1] if kernel else shape)
    return places


def _chain(*substitutions: tuple[str, str | Callable]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for pattern, replacement in substitutions:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


_projections = (
    (r"\battention\.(query|key|value)\.", lambda match: f"self_attn.{match[1][0]}_proj."),
    (r"\battention\.out\.", "self_attn.out_proj."),
)

# torchscale/architecture/decoder.py, Decoder(subln=True, share_decoder_input_output_embed=True); the decoder alone.
torchscale = _chain(
    *_projections,
    (r"^embedding\.", "embed_tokens."),
    (r"^decoder\.final_norm\.", "layer_norm."),
    (r"^decoder\.", ""),
    (r"\battention_norm\.", "self_attn_layer_norm."),
    (r"\battention\.inner_norm\.", "self_attn.inner_attn_ln."),
    (r"\bffn_norm\.", "final_layer_norm."),
    (r"\bffn_inner_norm\.", "ffn.ffn_layernorm."),
    (r"\b(fc[12])\.", r"ffn.\1."),
)

# transformers' CLIPVisionTransformer without a prefix ("pre_layrnorm" is how they spell it); the vision tower alone.
clip = _chain(
    *_projections,
    (r"^vision\.class_token$", "embeddings.class_embedding"),
    (r"^vision\.positions$", "embeddings.position_embedding.weight"),
    (r"^vision\.patch\.", "embeddings.patch_embedding."),
    (r"^vision\.ln_pre\.", "pre_layrnorm."),
    (r"^vision\.ln_post\.", "post_layernorm."),
    (r"^vision\.", "encoder."),
    (r"\bnorm([12])\.", r"layer_norm\1."),
    (r"\b(fc[12])\.", r"mlp.\1."),
)

# OpenAI's and open_clip's visual transformer, whose attention has one in_proj for query, key and value.
openai = _chain(
    (r"^vision\.class_token$", "class_embedding"),
    (r"^vision\.positions$", "positional_embedding"),
    (r"^vision\.patch\.", "conv1."),
    (r"^vision\.", ""),
    (r"^layers\.", "transformer.resblocks."),
    (r"\bnorm([12])\.", r"ln_\1."),
    (r"\bfc1\.", "mlp.c_fc."),
    (r"\bfc2\.", "mlp.c_proj."),
    (r"\battention\.(query|key|value)\.", r"attn.\1."),
    (r"\battention\.out\.", "attn.out_proj."),
)

# The released connector, the same in transformers and unilm.
_connector = _chain(
    (r"^connector\.queries$", "latent_query"),
    (r"^connector\.", ""),
    *_projections,
    (r"^self_attn\.", "x_attn."),
)


def _by_tower(decoder: Callable, vision: Callable, connector: Callable) -> Callable[[str], str]:
    towers = {"vision": vision, "connector": connector}
    return lambda name: towers.get(name.partition(".")[0], decoder)(name)


# transformers' Kosmos2ForConditionalGeneration.
kosmos2 = _by_tower(
    decoder=lambda name: "text_model.model." + torchscale(name),
    vision=lambda name: "vision_model.model." + clip(name),
    connector=lambda name: "image_to_text_projection." + _connector(name),
)

# The checkpoint of microsoft/unilm, kosmos-2: OpenAI's vision names but for attention, which is torchscale's.
_unilm_vision = _chain((r"\battn\.(q|k|v)(uery|ey|alue)\.", r"ts_attn.\1_proj."), (r"\battn\.", "ts_attn."))
unilm = _by_tower(
    decoder=lambda name: "gpt_model.decoder." + torchscale(name),
    vision=lambda name: "img_model.visual." + _unilm_vision(openai(name)),
    connector=lambda name: "img_connector." + _connector(name),
)


def is_vision(name: str) -> bool:
    return name.startswith("vision.")


def is_decoder(name: str) -> bool:
    return name.startswith(("decoder.", "embedding."))


# The patch embedding: a linear layer in our module, [d, p * p * 3], and a convolution everywhere else, [d, 3, p, p].
PATCH = "vision.patch.weight"


def convolution_shape(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The shape of the patch embedding as a convolution."""
    size = math.isqrt(shape[1] // 3)
    return (shape[0], 3, size, size)


def to_convolution(weight: np.ndarray) -> np.ndarray:
    """The patch embedding of our module as a convolution, contiguous."""
    size = convolution_shape(weight.shape)[-1]
    return np.ascontiguousarray(rearrange(weight, "d (p q c) -> d c p q", p=size, q=size))


def from_convolution(weight: np.ndarray) -> np.ndarray:
    """The reverse of `to_convolution`."""
    return np.ascontiguousarray(rearrange(weight, "d c p q -> d (p q c)"))
