"""Weights, keys and values in eight bits."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos_jax.inference.generator import Generator
from kosmos_jax.model.decoder import Decoder
from kosmos_jax.model.int8 import to_int8
from kosmos_jax.model.positions import CENTRE
from tests.model.tiny import model_config, random_model


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=12))
@settings(deadline=None)
def test_a_number_is_off_by_half_a_step_at_most(values):
    x = np.array([values], np.float32)
    found = to_int8(jnp.asarray(x), axis=-1)
    scale = np.asarray(found.scale, np.float64)
    assert found.values.dtype == jnp.int8 and scale.shape == (1, 1)
    assert (abs(np.asarray(found.values) * scale - x) <= 0.5001 * scale).all()


@pytest.mark.parametrize("int8", [("weights",), ("cache",), ("weights", "cache")], ids=" and ".join)
def test_answers_in_eight_bits_are_those_in_full_but_for_little(config, params, tokenizer, generator, prompts, int8):
    found = Generator(config, params, tokenizer, int8=int8)
    texts = [["seven", "four, and"]] * len(prompts)
    for one, other in zip(*(g.score_each(prompts, texts) for g in (generator, found)), strict=True):
        for full, short in zip(one, other, strict=True):
            assert 0 < abs(full.logprob - short.logprob) < 0.03 * full.tokens
    weights = found.engine.device._weights["decoder"]["layers"][0]["fc1"]["kernel"][...]
    assert (weights.dtype == jnp.int8) == ("weights" in int8)


@pytest.mark.parametrize("first", [0, 2 * CENTRE - 80], ids=["the first positions", "the last ones"])
def test_keys_are_rounded_before_xpos_scales_them(first):
    """The output of a decoder, far from the first position too, where scales differ by many orders of magnitude."""
    config = model_config(**{"text.layers": 1})
    decoder: Decoder = random_model(config).decoder
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 32)), jnp.float32)
    positions = first + jnp.arange(64, dtype=jnp.int32)[None]
    outputs = []
    for int8 in (False, True):
        decoder.int8_cache = int8
        ones, start = jnp.ones((1, 64), jnp.uint32), jnp.zeros(1, jnp.int32)
        outputs.append(decoder.extend(x, ones, positions, decoder.empty_cache(1, 64), start)[0])
    error = np.sqrt(np.mean((outputs[0] - outputs[1]) ** 2) / np.mean(outputs[0] ** 2))
    print(f"relative error {error:.1e}")
    assert 0 < error < 0.02
