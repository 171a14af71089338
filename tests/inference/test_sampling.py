import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos_jax.inference.sampling import most_likely, sample, truncate

# Sixteenths: often equal, never so small that a compiler rounds them to zero.
LOGITS = st.lists(st.integers(-128, 128), min_size=7, max_size=7).map(lambda x: np.array([x], np.float32) / 16)


@jax.jit
def truncated(logits, top_k, top_p, min_p=0.0):
    return truncate(logits, *(jnp.full(len(logits), limit) for limit in (top_k, top_p, min_p)))


@jax.jit
def sampled(logits, keys, temperature, top_k=0, top_p=1.0, min_p=0.0):
    return sample(logits, keys, *(jnp.full(len(logits), option) for option in (temperature, top_k, top_p, min_p)))


@given(LOGITS, st.integers(1, 7))
@settings(deadline=None)
def test_top_k_keeps_the_k_most_likely_and_their_equals(logits, k):
    kept = np.isfinite(np.asarray(truncated(logits, k, 1.0)))[0]
    threshold = np.sort(logits[0])[-k]
    np.testing.assert_array_equal(kept, logits[0] >= threshold)


@given(LOGITS, st.floats(0.01, 0.99))
@settings(deadline=None)
def test_top_p_keeps_the_smallest_most_likely_set_of_probability_p(logits, p):
    kept = np.isfinite(np.asarray(truncated(logits, 0, p)))[0]
    probabilities = np.exp(logits[0].astype(np.float64))
    probabilities /= probabilities.sum()
    assert probabilities[kept].sum() >= p - 1e-5
    assert kept.any() and probabilities[kept].min() >= probabilities[~kept].max(initial=0)
    least = probabilities[kept].min()
    assert probabilities[kept & (probabilities > least)].sum() < p + 1e-5


@given(LOGITS)
@settings(deadline=None)
def test_no_limits_change_nothing(logits):
    np.testing.assert_array_equal(truncated(logits, 0, 1.0), logits)


def test_top_p_counts_within_the_top_k():
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
    # Within the top two the first has 4/7 = 0.57.
    np.testing.assert_array_equal(np.isfinite(truncated(logits, 2, 0.5)), [[True, False, False, False]])
    np.testing.assert_array_equal(np.isfinite(truncated(logits, 2, 0.6)), [[True, True, False, False]])


def test_draws_follow_the_tempered_distribution():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    keys = jax.random.split(jax.random.key(0), 20_000)
    logits = jnp.broadcast_to(jnp.log(probabilities), (len(keys), 4))
    drawn = sampled(logits, keys, 0.5)
    expected = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(keys), expected, atol=0.015)


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-38, 1e-40, 0.0])
def test_a_cold_draw_is_the_most_likely_token_also_below_float32_s_range(temperature):
    logits = jax.random.normal(jax.random.key(1), (50, 9)) * 100
    logits = logits.at[:, 3].set(-jnp.inf)
    drawn = sampled(logits, jax.random.split(jax.random.key(2), 50), np.float32(temperature))
    np.testing.assert_array_equal(drawn, most_likely(logits))


@pytest.mark.parametrize("temperature", [1e30, float(np.finfo(np.float32).max)])
def test_however_hot_what_must_not_come_does_not_come(temperature):
    logits = jnp.zeros((2000, 4)).at[:, 1].set(-jnp.inf)
    drawn = sampled(logits, jax.random.split(jax.random.key(2), 2000), np.float32(temperature))
    assert set(np.unique(drawn)) == {0, 2, 3}


def test_a_nucleus_below_float32_s_range_is_the_most_likely_token():
    kept = np.isfinite(np.asarray(truncated(np.array([[1.0, 3.0, 2.0]], np.float32), 0, np.float32(1e-45))))
    assert kept.tolist() == [[False, True, False]]
