"""Our parameters under the names of our PyTorch module, and those under the names that others use.

The first step is mechanical: "decoder/layers/fc1/kernel" float[L, D, F] is L tensors "decoder.layers.{i}.fc1.weight"
[F, D]. Of an encoder's two stacks, `trunk` and `top`, PyTorch has one list. The second step is a chain of
substitutions for each foreign format; every format is a function from our PyTorch name to its own.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from einops import rearrange

STACKED = re.compile(r"(decoder/layers|[^/]+/(?:encoder/(?:trunk|top)|connector/layers))/(.+)")


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
    trunks = {path.partition("/")[0]: x.shape[0] for path, x in shapes.items() if path.endswith("/trunk/norm1/scale")}
    places = {}
    for path, leaf in shapes.items():
        stacked = STACKED.fullmatch(path)
        layers = range(leaf.shape[0]) if stacked else [None]
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        kernel = path.endswith("/kernel")
        for layer in layers:
            if stacked:
                stack, rest = stacked.groups()
                tower, _, last = stack.rpartition("/")
                index = layer + trunks.get(tower.partition("/")[0], 0) if last == "top" else layer
                name = f"{tower}/layers/{index}/{rest}"
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

# transformers' CLIPVisionTransformer without a prefix ("pre_layrnorm" is how they spell it); the encoder alone.
clip = _chain(
    *_projections,
    (r"^image\.encoder\.class_token$", "embeddings.class_embedding"),
    (r"^image\.encoder\.positions$", "embeddings.position_embedding.weight"),
    (r"^image\.encoder\.patch\.", "embeddings.patch_embedding."),
    (r"^image\.encoder\.ln_pre\.", "pre_layrnorm."),
    (r"^image\.encoder\.ln_post\.", "post_layernorm."),
    (r"^image\.encoder\.", "encoder."),
    (r"\bnorm([12])\.", r"layer_norm\1."),
    (r"\b(fc[12])\.", r"mlp.\1."),
)

# OpenAI's and open_clip's visual transformer, whose attention has one in_proj for query, key and value.
openai = _chain(
    (r"^image\.encoder\.class_token$", "class_embedding"),
    (r"^image\.encoder\.positions$", "positional_embedding"),
    (r"^image\.encoder\.patch\.", "conv1."),
    (r"^image\.encoder\.", ""),
    (r"^layers\.", "transformer.resblocks."),
    (r"\bnorm([12])\.", r"ln_\1."),
    (r"\bfc1\.", "mlp.c_fc."),
    (r"\bfc2\.", "mlp.c_proj."),
    (r"\battention\.(query|key|value)\.", r"attn.\1."),
    (r"\battention\.out\.", "attn.out_proj."),
)

# The released connector.
_connector = _chain(
    (r"^image\.connector\.queries$", "latent_query"),
    (r"^image\.connector\.", ""),
    *_projections,
    (r"^self_attn\.", "x_attn."),
)


def _by_tower(decoder: Callable, vision: Callable, connector: Callable) -> Callable[[str], str]:
    towers = {"image.encoder": vision, "image.connector": connector}
    return lambda name: towers.get(".".join(name.split(".")[:2]), decoder)(name)


# transformers' Kosmos2ForConditionalGeneration.
kosmos2 = _by_tower(
    decoder=lambda name: "text_model.model." + torchscale(name),
    vision=lambda name: "vision_model.model." + clip(name),
    connector=lambda name: "image_to_text_projection." + _connector(name),
)


def is_clip(name: str) -> bool:
    return name.startswith("image.encoder.")


# The patch embedding: a linear layer in our module, [d, p * p * 3], and a convolution everywhere else, [d, 3, p, p].
PATCH = "image.encoder.patch.weight"


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
