"""How parameters start: the sources give bounds and deviations, and these are they."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kosmos_jax.model.decoder import Decoder
from tests.model.tiny import model_config, quick_jit

GAIN = math.sqrt(math.log(2 * 4))  # of a decoder of 4 layers


def assert_uniform(values, bound):
    """Fills [-bound, bound] and no more; 1e-3 of the bound would be missed by fewer than 1 in 50 draws of 4096."""
    values = np.asarray(values)
    assert abs(values).max() <= bound
    assert abs(values).max() >= bound * (1 - 10 / values.size)
    assert values.std() == pytest.approx(bound / 3**0.5, rel=3 / values.size**0.5)


def assert_normal(values, std):
    values = np.asarray(values)
    assert values.std() == pytest.approx(std, rel=3 / values.size**0.5)
    assert abs(values).max() > 2.5 * std, "cut off at two deviations"


def test_sub_ln_scales_weights_and_biases_of_value_out_and_feed_forward(initial_model):
    width, ffn = 64, 256
    layers = initial_model.decoder.layers
    for part in (layers.attention.query, layers.attention.key):
        assert_uniform(part.kernel, width**-0.5)
        assert_uniform(part.bias, width**-0.5)
    for part, fan_in in (
        (layers.attention.value, width),
        (layers.attention.out, width),
        (layers.fc1, width),
        (layers.fc2, ffn),
    ):
        assert_uniform(part.kernel, GAIN * fan_in**-0.5)
        assert_uniform(part.bias, GAIN * fan_in**-0.5)


def test_magneto_draws_xavier_normal_weights_and_no_biases():
    text = model_config(**{"text.init": "magneto", "text.width": 64, "text.ffn": 192, "text.layers": 4}).text
    layers = quick_jit(lambda: Decoder(text, nnx.Rngs(0), jnp.float32).layers)()
    attention, square, oblong = layers.attention, math.sqrt(2 / (64 + 64)), math.sqrt(2 / (64 + 192))
    for part, std in (
        (attention.query, square),
        (attention.key, square),
        (attention.value, GAIN * square),
        (attention.out, GAIN * square),
        (layers.fc1, GAIN * oblong),
        (layers.fc2, GAIN * oblong),
    ):
        assert_normal(part.kernel, std)
        assert not np.asarray(part.bias).any()


def test_embeddings_have_deviation_one_over_sqrt_width_and_the_pad_row_is_zero(initial_model):
    table = np.asarray(initial_model.embedding[...])
    assert not table[1].any()
    assert_normal(np.delete(table, 1, axis=0), 64**-0.5)


def test_xconnector_starts_as_fairseqs_attention(initial_model):
    connector, xavier = initial_model.image.connector, math.sqrt(6 / (64 + 64))
    assert_normal(connector.queries[...], 1.0)
    assert_uniform(connector.dense.kernel, 48**-0.5)
    assert_uniform(connector.dense.bias, 48**-0.5)
    for name in ("query", "key", "value"):
        part = getattr(connector.attention, name)
        assert_uniform(part.kernel, xavier / math.sqrt(2))
        assert_uniform(part.bias, 64**-0.5)
    assert_uniform(connector.attention.out.kernel, xavier)
    assert not np.asarray(connector.attention.out.bias).any()


def test_vision_starts_as_transformers_clip(initial_model):
    vision, width, layers = initial_model.image.encoder, 48, 4
    deep = width**-0.5 * (2 * layers) ** -0.5
    for stacked in (vision.trunk, vision.top):
        for part, std in (
            (stacked.attention.query, deep),
            (stacked.attention.key, deep),
            (stacked.attention.value, deep),
            (stacked.attention.out, width**-0.5),
            (stacked.fc1, (2 * width) ** -0.5),
            (stacked.fc2, deep),
        ):
            assert_normal(part.kernel, std)
            assert not np.asarray(part.bias).any()
    assert_normal(vision.patch.kernel, 0.02)


def test_no_two_layers_and_no_two_towers_start_alike(initial_model):
    vision, decoder = initial_model.image.encoder, initial_model.decoder
    kernels = [*vision.trunk.attention.query.kernel[...], *vision.top.attention.query.kernel[...]]
    for matrices in (kernels, list(decoder.layers.fc1.kernel[...])):
        rows = np.stack([np.asarray(matrix).ravel() for matrix in matrices])
        likeness = np.corrcoef(rows) - np.eye(len(rows))
        assert len(rows) == 4 and abs(likeness).max() < 0.1
    attention = decoder.layers.attention
    assert not np.allclose(attention.query.kernel[0], attention.key.kernel[0])


def test_norms_start_as_the_identity(initial_model):
    for norm in (
        initial_model.image.encoder.ln_post,
        initial_model.decoder.final_norm,
        initial_model.decoder.layers.ffn_norm,
    ):
        assert (np.asarray(norm.scale[...]) == 1).all() and not np.asarray(norm.bias[...]).any()
