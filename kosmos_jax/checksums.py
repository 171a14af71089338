"""A number for each array that any single changed bit changes: what was read is what was written.

The i-th 32-bit word w_i of an array, row by row, counts with an odd weight of its own:

    sum over i of (2 i + 1) w_i   modulo 2^32

One flipped bit adds an odd multiple of a power of two below 2^32, which is never 0; words that changed places are
missed only by chance. The sum is exact and the same in any order, so it does not depend on the mesh, and each device
adds up what it holds.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def names(tree) -> dict[str, jax.Array]:
    """The leaves of a tree by Orbax's names: "optimizer.1.mu.embedding"; a dictionary of arrays keeps its keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def checksums(tree, first: int = 0) -> dict[str, int]:
    """Name -> checksum of every array of a tree; the same in all processes.

    Args:
      tree: of jax.Array, on any mesh, or of numpy arrays; 8 to 32 bits an element.
      first: i of the first word of each array, where it is a part of a larger one; those of the parts add up.
    """
    arrays = names(tree)
    if not arrays:
        return {}
    sharding = getattr(next(iter(arrays.values())), "sharding", None)
    replicated = NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else None
    sums = jax.jit(_sums, out_shardings=replicated)(arrays, np.uint32(first % 2**32))
    return {name: int(number) for name, number in jax.device_get(sums).items()}


def _sums(arrays, first):
    return {name: _sum(array, first) for name, array in arrays.items()}


def _sum(array, first):
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    strides = np.cumprod([1, *array.shape[:0:-1]], dtype=object)[::-1]
    place = jnp.full(array.shape, first)
    for axis, stride in enumerate(strides[: array.ndim]):
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(int(stride) % 2**32)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
