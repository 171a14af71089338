"""CLIP's vision transformer, as the Kosmos family reads it: every token's feature, not only the class token's."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from kosmos_jax.checks import nearest_multiples, not_among
from kosmos_jax.model.attention import Attention
from kosmos_jax.model.layers import gelu, layer_norm, linear, quick_gelu, unpinned
from kosmos_jax.model.perception.blocks import TwoStacks, size_problems, stack_flops

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}
# Means and deviations of CLIP's training images, per colour channel, on a scale of 0 to 1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_pixels(images_NHWC):
    """uint8[N, H, W, 3] -> float32[N, H, W, 3] with CLIP's mean and deviation; float images pass as they are."""
    if not jnp.issubdtype(images_NHWC.dtype, jnp.integer):
        return images_NHWC
    return (images_NHWC.astype(jnp.float32) / 255.0 - jnp.asarray(PIXEL_MEAN)) / jnp.asarray(PIXEL_STD)


def unit_length(x, epsilon=1e-12):
    """x / |x| over the last axis, in float32; where |x| is below epsilon, zero with a gradient of zero (not NaN)."""
    x32 = x.astype(jnp.float32)
    squared = jnp.sum(x32 * x32, axis=-1, keepdims=True)
    safe = jnp.where(squared > epsilon**2, squared, 1.0)
    return jnp.where(squared > epsilon**2, x32 * jax.lax.rsqrt(safe), 0.0).astype(x.dtype)


class ClipLayer(nnx.Module):
    """A pre-LN transformer block, initialised as transformers' CLIPPreTrainedModel._init_weights."""

    def __init__(self, config, rngs, dtype):
        normal, zeros = jax.nn.initializers.normal, jax.nn.initializers.zeros
        depth_std = config.width**-0.5 * (2 * config.layers) ** -0.5
        scaled = dict(kernel=normal(depth_std), bias=zeros)
        inits = dict(query=scaled, key=scaled, value=scaled, out=dict(kernel=normal(config.width**-0.5), bias=zeros))
        self.norm1 = layer_norm(config.width, rngs, dtype)
        self.attention = Attention(config.width, config.heads, rngs, dtype, inits=inits)
        self.norm2 = layer_norm(config.width, rngs, dtype)
        fc_std = (2 * config.width) ** -0.5
        self.fc1 = linear(config.width, config.ffn, rngs, dtype, kernel=normal(fc_std), bias=zeros)
        self.fc2 = linear(config.ffn, config.width, rngs, dtype, kernel=normal(depth_std), bias=zeros)


class Clip(TwoStacks):
    """Patches, class token, learned positions, pre-LN blocks; LayerNorm on all tokens, then unit length per token."""

    DTYPES = ("uint8",)
    KEYS = ("patch_size", "width", "layers", "heads", "ffn", "activation", "top_layers")
    SHARDINGS = (
        (r"class_token|positions", "replicated"),
        (r"(ln_pre|ln_post)/(scale|bias)", "replicated"),
        (r"patch/kernel", "widen_df"),
    )

    def __init__(self, config, shape, rngs, dtype, constrain=unpinned):
        """Args: config: the `encoder` section of a modality. shape: of an image, (size, size, 3)."""
        self.config, self.shape, self.width = config, tuple(shape), config.width
        self.constrain = constrain
        normal = jax.nn.initializers.normal
        self.class_token = nnx.Param(normal(config.width**-0.5)(rngs.params(), (config.width,)))
        # As OpenAI's: at transformers' 0.02 a tower from scratch takes long to see where a patch lies.
        self.positions = nnx.Param(
            normal(config.width**-0.5)(rngs.params(), (self.patches(config, shape), config.width))
        )
        pixels = 3 * config.patch_size**2
        self.patch = linear(pixels, config.width, rngs, dtype, kernel=normal(0.02), use_bias=False)
        self.ln_pre = layer_norm(config.width, rngs, dtype)
        self.build_stacks(lambda rngs: ClipLayer(config, rngs, dtype), config, rngs)
        self.ln_post = layer_norm(config.width, rngs, dtype)

    @staticmethod
    def patches(config, shape) -> int:
        """P, the vectors that one image gives: one for each patch, and the class token's."""
        return (shape[0] // config.patch_size) ** 2 + 1

    @staticmethod
    def described(shape, tokens: int) -> str:
        """An item in words, for the log."""
        return f"{shape[0]} x {shape[1]} pixels, {tokens} vectors"

    @staticmethod
    def flops(config, shape) -> dict[str, float]:
        """Forward, for one image, by stack from the pixels upward; see kosmos_jax/training/flops.py."""
        patches = Clip.patches(config, shape)
        return stack_flops(config, patches, 2 * (patches - 1) * 3 * config.patch_size**2 * config.width)

    @staticmethod
    def problems(config, shape) -> Iterator[str]:
        """What cannot be, each message beginning with the key below the modality's section."""
        found = list(size_problems(config, "patch_size"))
        yield from found
        yield from not_among("encoder.activation", config.activation, ACTIVATIONS)
        if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
            yield f"shape is {shape}; CLIP reads square images of three colours: (224, 224, 3)"
        elif not found and shape[0] % config.patch_size:
            around = nearest_multiples(shape[0], config.patch_size)
            yield f"shape is {shape}, no multiple of encoder.patch_size {config.patch_size}; try a size of {around}"

    def __call__(self, images_NHWC, *, remat="none", unroll=1):
        """Reads images.

        Args:
          images_NHWC: uint8[N, H, W, 3], or float already normalised; [H, W, 3] is `shape`.
          remat, unroll: see `scan_layers`.

        Returns:
          float[N, P, d]: unit vectors, the class token's first.
        """
        patch = self.config.patch_size
        if images_NHWC.shape[1:] != self.shape:
            raise ValueError(f"this encoder reads images of {self.shape} and was given {images_NHWC.shape[1:]}")
        pixels_NHWC = normalize_pixels(images_NHWC).astype(self.patch.dtype)
        x_NPd = self.patch(rearrange(pixels_NHWC, "n (h p) (w q) c -> n (h w) (p q c)", p=patch, q=patch))
        class_Nd = jnp.broadcast_to(self.class_token[...].astype(x_NPd.dtype), (x_NPd.shape[0], 1, x_NPd.shape[2]))
        x_NPd = jnp.concatenate([class_Nd, x_NPd], axis=1) + self.positions[...].astype(x_NPd.dtype)
        x_NPd = self.constrain(self.ln_pre(x_NPd), "items_npd")
        x_NPd = self.through_stacks(x_NPd, ACTIVATIONS[self.config.activation], remat, unroll)
        return unit_length(self.ln_post(x_NPd))
