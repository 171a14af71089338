"""CLIP's vision transformer, as the Kosmos family reads it: every token's feature, not only the class token's."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from kosmos_jax.model.attention import Attention
from kosmos_jax.model.layers import gelu, layer_norm, linear, quick_gelu, scan_layers, stack, unpinned

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


class VisionLayer(nnx.Module):
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


class Vision(nnx.Module):
    """Patches, class token, learned positions, pre-LN blocks; LayerNorm on all tokens, then unit length per token.

    The blocks live in two stacks, `trunk` and the last `top_layers` in `top`, because the paper trains only the last:
    a rule for frozen parameters sees a whole stack or nothing of it.
    """

    def __init__(self, config, rngs, dtype, constrain=unpinned):
        self.config = config
        self.constrain = constrain
        normal = jax.nn.initializers.normal
        patches = (config.image_size // config.patch_size) ** 2
        self.class_token = nnx.Param(normal(config.width**-0.5)(rngs.params(), (config.width,)))
        # As OpenAI's: at transformers' 0.02 a tower from scratch takes long to see where a patch lies.
        self.positions = nnx.Param(normal(config.width**-0.5)(rngs.params(), (patches + 1, config.width)))
        pixels = 3 * config.patch_size**2
        self.patch = linear(pixels, config.width, rngs, dtype, kernel=normal(0.02), use_bias=False)
        self.ln_pre = layer_norm(config.width, rngs, dtype)
        for name, count in (("trunk", config.layers - config.top_layers), ("top", config.top_layers)):
            layers = stack(lambda rngs: VisionLayer(config, rngs, dtype), count, rngs) if count else None
            setattr(self, name, layers)
        self.ln_post = layer_norm(config.width, rngs, dtype)

    def __call__(self, images_NHWC, *, remat="none", unroll=1):
        """Reads images.

        Args:
          images_NHWC: uint8[N, H, W, 3], or float already normalised; H and W are `image_size`.

        Returns:
          float[N, P, d]: unit vectors, the class token's first.
        """
        size, patch = self.config.image_size, self.config.patch_size
        if images_NHWC.shape[1:] != (size, size, 3):
            raise ValueError(f"the vision tower reads {size} x {size} x 3 images and was given {images_NHWC.shape[1:]}")
        pixels_NHWC = normalize_pixels(images_NHWC).astype(self.patch.dtype)
        x_NPd = self.patch(rearrange(pixels_NHWC, "n (h p) (w q) c -> n (h w) (p q c)", p=patch, q=patch))
        class_Nd = jnp.broadcast_to(self.class_token[...].astype(x_NPd.dtype), (x_NPd.shape[0], 1, x_NPd.shape[2]))
        x_NPd = jnp.concatenate([class_Nd, x_NPd], axis=1) + self.positions[...].astype(x_NPd.dtype)
        x_NPd = self.constrain(self.ln_pre(x_NPd), "images_nqd")
        activation = ACTIVATIONS[self.config.activation]

        def call(layer, x_NPd, _):
            x_NPd = x_NPd + layer.attention(layer.norm1(x_NPd))
            x_NPd = x_NPd + layer.fc2(activation(layer.fc1(layer.norm2(x_NPd))))
            return self.constrain(x_NPd, "images_nqd")

        for stacked in (self.trunk, self.top):
            if stacked is not None:
                x_NPd = scan_layers(stacked, x_NPd, remat=remat, unroll=unroll, call=call)
        return unit_length(self.ln_post(x_NPd))
