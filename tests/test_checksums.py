"""Checksums of arrays: against the formula in whole numbers, on a mesh, and for every bit that can change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kosmos_jax.checksums import checksums

DTYPES = ("float32", "bfloat16", "int32", "uint8")


def by_formula(array: np.ndarray) -> int:
    words = np.frombuffer(np.ascontiguousarray(array).tobytes(), f"uint{8 * array.dtype.itemsize}")
    return sum((2 * i + 1) * int(word) for i, word in enumerate(words)) % 2**32


def drawn(seed, shape, dtype) -> np.ndarray:
    return np.asarray(jnp.asarray(np.random.default_rng(seed).normal(0, 100, shape)).astype(dtype))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES))
def test_the_checksum_is_the_formula_in_whole_numbers(seed, shape, dtype):
    array = drawn(seed, shape, dtype)
    assert checksums({"a": array}) == {"a": by_formula(array)}


@pytest.mark.parametrize("spec", [P("x"), P(None, "y"), P("y", "x"), P()])
def test_the_mesh_does_not_change_it(spec):
    array = drawn(0, (8, 12, 3), "float32")
    mesh = Mesh(np.reshape(jax.devices(), (2, 4)), ("x", "y"))
    placed = jax.device_put(array, NamedSharding(mesh, spec))
    assert checksums({"a": placed}) == {"a": by_formula(array)}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 15), st.integers(0, 7), st.sampled_from(("float32", "bfloat16")))
def test_any_flipped_bit_changes_it(place, bit, dtype):
    array = drawn(1, (4,), dtype)
    data = bytearray(array.tobytes())
    data[place % len(data)] ^= 1 << bit
    assert checksums({"a": np.frombuffer(bytes(data), array.dtype)}) != checksums({"a": array})


def test_arrays_that_changed_places_change_it():
    a, b = drawn(2, (6,), "float32"), drawn(3, (6,), "float32")
    assert checksums({"a": a, "b": b}) != checksums({"a": b, "b": a})
    assert checksums({"a": np.concatenate([a, b])}) != checksums({"a": np.concatenate([b, a])})
