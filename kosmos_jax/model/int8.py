"""Numbers in eight bits: kernels with a scale for each output, keys and values with one for each token and head.

    value = int8 * scale,   scale = largest magnitude / 127

Products are taken in the dtype of the arithmetic; what is saved is memory, and the time to read it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

LARGEST = 127


class Int8(NamedTuple):
    """An array of float as values and scales.

    Attributes:
      values: int8, of its shape.
      scale: float32, of its shape but for 1 in the dimension that shares a scale.
    """

    values: jax.Array
    scale: jax.Array


def to_int8(x, axis: int) -> Int8:
    """The nearest Int8 of an array of float; a scale for all numbers along `axis`."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True) / LARGEST, jnp.finfo(jnp.float32).tiny)
    return Int8(jnp.round(x / scale).astype(jnp.int8), scale)


class Int8Linear(nnx.Module):
    """An nnx.Linear with an Int8 kernel; its parameters are kernel, scale and bias."""

    def __init__(self, linear: nnx.Linear):
        """Takes the place of a layer, whose shapes it has."""
        kernel = to_int8(linear.kernel[...], axis=0)
        self.kernel, self.scale = nnx.Param(kernel.values), nnx.Param(kernel.scale)
        self.bias = linear.bias

    def __call__(self, x):
        kernel_IO = self.kernel[...].astype(x.dtype)
        y = jnp.einsum("...i,io->...o", x, kernel_IO, preferred_element_type=jnp.float32) * self.scale[0]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)
