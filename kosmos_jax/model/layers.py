"""The few layers that every tower shares, with PyTorch's defaults where Flax's differ.

Flax and PyTorch disagree on LayerNorm's epsilon (1e-6, 1e-5), on GELU (tanh approximation, exact) and on how a linear
layer is initialised. The released code of the Kosmos family is PyTorch, so PyTorch's choice is the default here.
"""

import jax
import jax.numpy as jnp
from flax import nnx

EPSILON = 1e-5


def uniform(bound: float):
    """Initializer: U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def linear(fan_in: int, fan_out: int, rngs: nnx.Rngs, dtype, *, kernel=None, bias=None, use_bias=True) -> nnx.Linear:
    """A linear layer, by default with torch.nn.Linear's U(+-1/sqrt(fan_in)) for kernel and bias.

    Args:
      fan_in, fan_out: widths.
      rngs: of the initial values.
      dtype: of the arithmetic; parameters are float32.
      kernel, bias: initializers; None for PyTorch's.
      use_bias: whether there is one.
    """
    default = uniform(fan_in**-0.5)
    return nnx.Linear(
        fan_in,
        fan_out,
        use_bias=use_bias,
        kernel_init=kernel or default,
        bias_init=bias or default,
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def layer_norm(width: int, rngs: nnx.Rngs, dtype) -> nnx.LayerNorm:
    """LayerNorm with PyTorch's epsilon; statistics in float32, the result in `dtype`.

    Args:
      width: of the last axis.
      rngs: of the initial values.
      dtype: of the result.
    """
    return nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)


def gelu(x):
    """GELU by the error function, as torch.nn.functional.gelu, computed in float32 (torchscale does so too)."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def quick_gelu(x):
    """x * sigmoid(1.702 x): what OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def dropout(x, rate: float, key):
    """Inverted dropout; the identity when `key` is None (evaluation, generation) or `rate` is 0.

    The rate is taken to the nearest 1/256 and the scale goes with it: one 32-bit draw then serves four numbers, and
    drawing is what dropout costs.

    Args:
      x: any array of floats.
      rate: probability of a zero.
      key: or None.
    """
    kept = round(256 * (1.0 - rate))
    if key is None or kept == 256:
        return x
    width = x.shape[-1]
    draws = jax.random.bits(key, (*x.shape[:-1], -(-width // 4)), jnp.uint32)
    octets = jnp.concatenate([(draws >> shift).astype(jnp.uint8) for shift in (0, 8, 16, 24)], axis=-1)[..., :width]
    return jnp.where(octets < kept, x * (256 / kept), 0.0).astype(x.dtype)


def unpinned(x, name: str):
    """The `constrain` of a model that lives on one device: leaves every activation where it is."""
    return x


def layer_flops(width: int, ffn: int, seen: float) -> float:
    """Forward, of one transformer layer for one token that looks at `seen` tokens; a multiply-add counts 2.

    Args:
      width, ffn: D and F.
      seen: tokens that it looks at, on average.
    """
    return 2 * (4 * width**2 + 2 * width * ffn) + 2 * 2 * width * seen


def split_key(key, count: int):
    """`count` independent keys, or as many None when there is nothing to drop out."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def stack(make_layer, count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers as one module whose every parameter has a leading layer axis L.

    They are made one after another: all at once, the random bits would take twice the memory of the parameters.

    Args:
      make_layer: of rngs.
      count: L.
      rngs: split over the layers.
    """
    return nnx.scan(make_layer, in_axes=0, out_axes=0)(rngs.split(count))


def unstack(stacked: nnx.Module) -> nnx.List:
    """The layers of a module made by `stack`, each by itself.

    Generation wants them so: one token does little with a layer's weights, and taking them out of a stack would mean
    copying them for every token.
    """
    graph, params = nnx.split(stacked)
    count = jax.tree.leaves(params)[0].shape[0]
    return nnx.List([nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], params)) for i in range(count)])


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def scan_layers(stacked: nnx.Module, x, *, key=None, remat="none", unroll=1, call):
    """Runs stacked layers one after another; compile time does not grow with depth.

    Args:
      stacked: a module made by `stack`.
      x: the array that every layer maps to one of the same shape.
      key: dropout key, split over the layers; None for none.
      remat: "none" keeps every intermediate for the backward pass, "dots" keeps the results of matrix products with
        weights, "full" keeps only the layers' inputs.
      unroll: how many layers one iteration of the loop runs.
      call: (layer, x, key) -> x.

    Returns:
      An array like `x`.
    """
    graph, params = nnx.split(stacked)
    count = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, count)

    def body(x, layer_inputs):
        layer_params, layer_key = layer_inputs
        return call(nnx.merge(graph, layer_params), x, layer_key), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=unroll > 1)
    return jax.lax.scan(body, x, (params, keys), unroll=unroll)[0]
