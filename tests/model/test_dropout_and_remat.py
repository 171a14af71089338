"""Switches that must not change the numbers, and the one that must change them just so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos_jax.model import parameters
from kosmos_jax.model.attention import attend
from kosmos_jax.model.layers import dropout
from tests.model.tiny import model_config, quick_jit, quick_logits_of, random_model

NO_DROPOUT = {"text.dropout": 0.0, "text.attention_dropout": 0.0, "perception.image.connector.dropout": 0.0}
SMALL = {"text.layers": 2, "perception.image.encoder.layers": 2, "perception.image.encoder.top_layers": 0}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    slots = np.full((2, 12), -1)
    slots[0, 2:6] = np.arange(4)
    positions = np.tile(np.arange(12), (2, 1))
    images = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    return rng.integers(2, 64, (2, 12)), np.ones((2, 12), np.int32), positions, slots, {"image": images}


@quick_jit
def gradients(model, key, *batch):
    return parameters(jax.grad(lambda m: jnp.sin(m.logits(m(*batch, key=key))).sum())(model))


@pytest.fixture(scope="module")
def plain_gradients(batch):
    return gradients(random_model(model_config(**SMALL)), jax.random.key(1), *batch)


@pytest.mark.parametrize("switch", [{"remat": "full"}, {"remat": "dots", "scan_unroll": 2}], ids=str)
def test_remat_and_unroll_change_no_gradient_even_with_dropout(plain_gradients, batch, switch):
    other = gradients(random_model(model_config(**SMALL, **switch)), jax.random.key(1), *batch)
    for path, gradient in plain_gradients.items():
        assert np.abs(other[path] - gradient).max() <= 1e-5 * max(np.abs(gradient).max(), 1.0), path


def test_without_a_key_nothing_is_dropped(batch):
    *texts, _, _ = batch
    with_rates, without_rates = random_model(model_config()), random_model(model_config(**NO_DROPOUT))
    plain = np.asarray(quick_logits_of(with_rates, *texts))
    assert np.array_equal(plain, quick_logits_of(without_rates, *texts))
    assert np.array_equal(plain, quick_logits_of(without_rates, *texts, key=jax.random.key(0)))


def assert_drops(read):
    """`read(key)` changes with the key and only with it."""
    plain, first, again, other = (np.asarray(read(seed)) for seed in (None, 0, 0, 1))
    assert np.array_equal(first, again)
    assert np.abs(first - plain).max() > 1e-2 and np.abs(first - other).max() > 1e-2


def key_of(seed):
    return None if seed is None else jax.random.key(seed)


@pytest.mark.parametrize("rate", ["text.dropout", "text.attention_dropout"])
def test_each_of_the_texts_rates_drops_something(batch, rate):
    *texts, _, _ = batch
    model = random_model(model_config(**NO_DROPOUT | {rate: 0.3}))
    assert_drops(lambda seed: quick_logits_of(model, *texts, key=key_of(seed)))


@pytest.mark.parametrize("kind", ["xconnector", "perceiver"])
def test_the_connectors_rate_drops_something(kind):
    sizes = model_config(**{"perception.image.connector.kind": kind, "perception.image.connector.dropout": 0.3})
    connector = random_model(sizes).image.connector
    features = np.random.default_rng(0).standard_normal((1, 5, 24)).astype(np.float32)
    read = quick_jit(lambda connector, key: connector(features, key=key))
    assert_drops(lambda seed: read(connector, key_of(seed)))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_rate_and_keeps_the_expectation(rate):
    x = np.full((500, 500), 3.0, np.float32)
    dropped = np.asarray(dropout(x, rate, jax.random.key(0)))
    kept, rate = dropped != 0, round(256 * rate) / 256
    spread = (rate * (1 - rate) / x.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 4 * spread
    assert np.allclose(dropped[kept], 3 / (1 - rate), rtol=1e-6)
    assert abs(dropped.mean() / 3 - 1) < 4 * spread / (1 - rate)
    assert dropout(x, rate, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("width", [400, 401, 3])
def test_numbers_that_share_a_draw_are_dropped_independently(width):
    kept = np.asarray(dropout(jnp.ones((400_000 // width, width)), 0.3, jax.random.key(1)) != 0).astype(float)
    assert kept.shape[1] == width
    quarter = -(-width // 4)
    blocks = np.stack([kept[:, i : i + 1] if width < 4 else kept[:, i * quarter :][:, :97] for i in range(3)])
    blocks = blocks.reshape(3, -1)
    between = np.corrcoef(blocks)[np.triu_indices(3, 1)]
    assert np.abs(between).max() < 4 / blocks.shape[1] ** 0.5


def test_embeddings_drop_the_texts_rate_and_attention_its_own():
    model = random_model(model_config(**{"text.dropout": 0.25}))
    tokens = np.random.default_rng(0).integers(2, 64, (16, 64))
    embedded = quick_jit(lambda m, key: m.embed(tokens, None, None, None, key=key))(model, jax.random.key(0))
    assert np.mean(embedded == 0) == pytest.approx(0.25, abs=0.01)

    # Values are unit vectors, so that the output is the matrix of attention weights: all of them 1/64.
    queries, values = jnp.zeros((8, 64, 1, 64)), jnp.broadcast_to(jnp.eye(64)[None, :, None], (8, 64, 1, 64))
    weights = quick_jit(partial(attend, dropout_rate=0.4))(queries, queries, values, key=jax.random.key(0))
    assert np.mean(np.asarray(weights) == 0) == pytest.approx(0.4, abs=0.01)
    assert np.allclose(weights[weights != 0], 256 / 154 / 64, rtol=1e-6)


def test_every_layer_drops_other_numbers():
    """With all layers alike and attention and feed-forward adding constants, equal masks would drop equal places."""
    model = random_model(model_config(**NO_DROPOUT | {"text.dropout": 0.5, "text.layers": 2}))
    layers = model.decoder.layers
    for part in (layers.attention.out, layers.fc2):
        part.kernel[...] = jnp.zeros_like(part.kernel[...])
    layers.attention.out.bias[...] = jnp.zeros_like(layers.attention.out.bias[...])
    layers.fc2.bias[...] = jnp.array([[1.0], [3.0]]) * jnp.ones_like(layers.fc2.bias[...])
    final = model.decoder.final_norm
    final.scale[...], final.bias[...] = jnp.ones_like(final.scale[...]), jnp.zeros_like(final.bias[...])
    ones, positions = np.ones((1, 50), np.int32), np.arange(50)[None]
    read = quick_jit(lambda m, key: m.decoder(jnp.zeros((1, 50, 32)), ones, positions, key=key))
    x = read(model, jax.random.key(0))
    levels = {round(float(v), 4) for v in np.asarray(x)[0, 0]}
    assert len(levels) == 4, "0, 1, 3 and 4, normalised: both, one or no layer's number kept"
