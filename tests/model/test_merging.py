"""Vectors of items stand in their slots, and a batch without images trains nothing of the image side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kosmos_jax.model import parameters
from kosmos_jax.model.merging import merge
from kosmos_jax.model.perception.clip import unit_length
from tests.model.tiny import model_config, quick_jit, random_model


@quick_jit
def gradients(model, *batch):
    spread = jnp.sin(jnp.arange(batch[0].size * 64.0)).reshape(*batch[0].shape, 64)
    return parameters(jax.grad(lambda m: (m.logits(m(*batch)) * spread).sum())(model))


def test_merge_on_the_example_of_its_docstring():
    t = -1.0
    vectors_MD = np.arange(6.0).reshape(6, 1)
    slots_BT = np.array([[-1, 0, 1, -1, -1], [2, 3, -1, 4, 5]])
    merged = merge(jnp.full((2, 5, 1), t), vectors_MD, slots_BT)
    assert merged[..., 0].tolist() == [[t, 0, 1, t, t], [2, 3, t, 4, 5]]


@pytest.fixture(scope="module")
def text_rows():
    tokens = np.random.default_rng(0).integers(2, 64, (2, 8))
    segments, positions = np.ones((2, 8), np.int32), np.tile(np.arange(8), (2, 1))
    return tokens, segments, positions, np.full((2, 8), -1)


@pytest.fixture(scope="module", params=["xconnector", "perceiver"])
def model(request):
    return random_model(
        model_config(
            **{
                "perception.image.connector.kind": request.param,
                "text.layers": 2,
                "perception.image.encoder.top_layers": 3,
            }
        )
    )


BLACK = {"image": np.zeros((2, 16, 16, 3), np.uint8)}


def test_batch_without_images_has_zero_gradients_on_the_image_side(model, text_rows):
    for path, gradient in gradients(model, *text_rows, BLACK).items():
        image_side = path.startswith("image/")
        assert np.isfinite(gradient).all(), path
        assert image_side != bool(np.asarray(gradient).any()), path


def test_a_black_image_trains_everything_and_an_unused_one_harms_nothing(model, text_rows):
    *texts, slots = text_rows
    slots = slots.copy()
    slots[0, 2:6] = np.arange(4)
    for path, gradient in gradients(model, *texts, slots, BLACK).items():
        assert np.isfinite(gradient).all() and np.asarray(gradient).any(), path


def test_unit_length_of_a_zero_vector_is_zero_with_a_zero_gradient():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    assert np.allclose(unit_length(x), [[0.6, 0.8], [0.0, 0.0]])
    gradient = jax.grad(lambda x: (unit_length(x) * jnp.array([1.0, 2.0])).sum())(x)
    assert np.allclose(gradient, [[(16 - 24) / 125, (18 - 12) / 125], [0.0, 0.0]])


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images of \(16, 16, 3\) and was given .*17"):
        random_model(model_config()).perceive({"image": np.zeros((1, 17, 16, 3), np.uint8)})
