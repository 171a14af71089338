"""xPos and the sinusoids against float64 renderings of their formulas."""

import jax
import numpy as np
import pytest
import torch
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextSinusoidalPositionalEmbedding

from kosmos_jax.model.attention import packed_attention
from kosmos_jax.model.positions import CENTRE, sinusoids, xpos, xpos_tables

LAST = 2047
XPOS_POSITIONS = 2 * CENTRE  # those that a config may ask for


def scores_in_float64(q_NK, k_MK, distance_NM):
    """q_n . k_m with xPos at distance n - m: each pair of numbers is a complex one, turned and scaled.

    xPos paper (arXiv 2212.10554): Re[q_i conj(k_i) exp(1j (n - m) theta_i)] zeta_i^((n - m) / 512), summed over i.
    """
    width = q_NK.shape[-1]
    i = np.arange(width // 2)
    theta, zeta = 10000.0 ** (-2 * i / width), (2 * i / width + 0.4) / 1.4
    q, k = (x[:, 0::2].astype(np.float64) + 1j * x[:, 1::2] for x in (q_NK, k_MK))
    turned = np.exp(1j * distance_NM[..., None] * theta) * zeta ** (distance_NM[..., None] / 512)
    return np.einsum("ni,mi,nmi->nm", q, k.conj(), turned).real


def scores(q_NK, k_MK, q_positions, k_positions):
    q, k = q_NK[:, None, None], k_MK[:, None, None]
    rotated_q = jax.jit(xpos)(q, q, np.asarray(q_positions)[:, None])[0]
    rotated_k = jax.jit(xpos)(k, k, np.asarray(k_positions)[:, None])[1]
    return np.einsum("nk,mk->nm", np.float64(rotated_q[:, 0, 0]), np.float64(rotated_k[:, 0, 0]))


def vectors(count, width, seed):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("width", [2, 8, 64])
def test_xpos_tables_follow_the_formula_up_to_the_last_position(width):
    n = np.arange(LAST + 1)
    i = np.arange(width // 2)
    angle = n[:, None] * 10000.0 ** (-2 * i / width)
    scale = ((2 * i + 0.4 * width) / (1.4 * width)) ** (n[:, None] / 512)
    tables = jax.jit(xpos_tables, static_argnums=1)(n[None].astype(np.int32), width)
    cos, sin, q_scale, k_scale = (np.asarray(x[0]) for x in tables)
    # An angle of 2047 radians is known to 1e-4 in float32.
    np.testing.assert_allclose(cos, np.cos(angle), atol=2e-4)
    np.testing.assert_allclose(sin, np.sin(angle), atol=2e-4)
    np.testing.assert_allclose(q_scale / q_scale[0], scale, rtol=5e-6)
    np.testing.assert_allclose(k_scale / k_scale[0], 1 / scale, rtol=5e-6)


@pytest.mark.parametrize("width", [2, 8, 64, 128])
def test_the_factors_of_the_scales_are_powers_of_two_and_cancel_without_a_rounding(width):
    q_scale, k_scale = (np.asarray(x)[0, 0] for x in xpos_tables(np.zeros((1, 1), np.int32), width)[2:])
    np.testing.assert_array_equal(np.frexp(q_scale)[0], 0.5)
    np.testing.assert_array_equal(q_scale * k_scale, 1)


@pytest.mark.parametrize("width", [8, 64])
def test_xpos_scores_follow_the_formula_at_the_last_positions_of_all(width):
    q, k = vectors(10, width, 0), vectors(10, width, 1)
    n = XPOS_POSITIONS - 1 - np.arange(10)
    m = n - np.array([0, 1, 5, 17, 100, 512, 1000, 4000, 16_000, 32_000])
    expected = np.diag(scores_in_float64(q, k, n[:, None] - m))
    size = np.diag(scores_in_float64(np.abs(q), np.abs(k), 0 * n[:, None] * m))
    worst = (np.abs(np.diag(scores(q, k, n, m)) - expected) / size).max()
    print(f"xPos scores at position {XPOS_POSITIONS - 1}, head width {width}: max relative diff {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("start", [LAST, 16_000, XPOS_POSITIONS - 64])
def test_queries_and_keys_have_the_gradients_of_the_first_positions_everywhere(start):
    q, k, v, weights = (vectors(64, 64, seed)[None, :, None] for seed in range(4))
    ones = np.ones((1, 64), np.int32)

    def loss(q, k, start):
        positions = (start + np.arange(64))[None]
        # As small as the mean over a large batch makes it.
        return (packed_attention(*xpos(q, k, positions), v, ones, positions) * weights * 1e-8).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    for here, first in zip(gradients(q, k, start), gradients(q, k, 0), strict=True):
        np.testing.assert_allclose(here, first, atol=2e-3 * np.abs(first).max())


@pytest.mark.parametrize("width", [8, 64])
def test_xpos_scores_follow_the_formula_at_all_distances(width):
    positions = np.array([0, 1, 2, 17, 511, 512, 1023, 1024, 2000, LAST])
    q, k = vectors(10, width, 0), vectors(10, width, 1)
    distance = positions[:, None] - positions
    expected = scores_in_float64(q, k, distance)
    # Relative to the size of the summands; towards the future (never attended to) zeta^(n - m) grows to 150.
    size = scores_in_float64(np.abs(q), np.abs(k), 0 * distance) * np.maximum(1, (0.4 / 1.4) ** (distance / 512))
    worst = (np.abs(scores(q, k, positions, positions) - expected) / size).max()
    print(f"xPos scores, head width {width}: max relative diff {worst:.1e}")
    assert worst < 2e-5


def test_xpos_scores_depend_on_the_distance_alone():
    q, k = vectors(6, 16, 2), vectors(6, 16, 3)
    n, m = np.array([900, 512, 40, 39, 3, 0]), np.array([0, 3, 17, 39, 40, 41])
    at_start = np.diag(scores(q, k, n, m))
    size = np.diag(scores_in_float64(np.abs(q), np.abs(k), 0 * n[:, None] * m))
    for shift in (1, 700, LAST - 900):
        shifted = np.diag(scores(q, k, n + shift, m + shift))
        assert (np.abs(shifted - at_start) / size).max() < 2e-5
    swapped = np.diag(scores(q, k, m, n))
    assert (np.abs(swapped - at_start) / size).max() > 0.05, "n - m and m - n must not be the same"


def test_xpos_forgets_distant_keys_and_changes_no_product_at_position_zero():
    q = vectors(1, 64, 4)
    near, far = scores(q, q, [0, LAST], [0])
    assert near[0] == pytest.approx(np.float64(q[0]) @ np.float64(q[0]), rel=1e-12)
    assert abs(far[0]) < 0.5 * near[0]


@pytest.mark.parametrize("width", [4, 32, 128])
def test_sinusoids_are_the_rows_that_transformers_reads(width):
    table = Kosmos2TextSinusoidalPositionalEmbedding(LAST + 1, width, padding_idx=1)
    tokens = torch.full((1, LAST + 1), 5)
    expected = table(tokens)[0].numpy()
    ours = np.asarray(jax.jit(sinusoids, static_argnums=1)(np.arange(LAST + 1)[None], width))[0]
    np.testing.assert_allclose(ours, expected, atol=3e-4)
    np.testing.assert_allclose(ours[:32], expected[:32], atol=1e-5)
