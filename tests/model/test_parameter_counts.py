"""The numbers of parameters that the paper's sizes imply, counted from the config files without allocating any."""

import math

import jax
import pytest

from configs import kosmos1, kosmos1_sizes, kosmos2
from kosmos_jax.model import abstract_model


def count(config, *parts):
    shapes = abstract_model(config.model)[1]
    assert all(type(leaf) is jax.ShapeDtypeStruct and leaf.dtype == "float32" for leaf in shapes.values())
    return sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path.startswith(parts or ""))


def test_kosmos1_has_its_1_6_billion_parameters():
    config = kosmos1.get_config()
    assert count(config, "decoder/", "embedding") == 1_340_180_480
    assert count(config, "image/encoder/") == 303_179_776
    assert count(config, "image/connector/") == 19_015_680
    assert count(config) == 1_662_375_936


def test_kosmos2_has_the_parameters_of_the_released_model():
    assert count(kosmos2.get_config()) == 1_664_485_376


@pytest.mark.parametrize("size", kosmos1_sizes.SIZES)
def test_a_size_has_the_parameters_of_its_name(size):
    billions = count(kosmos1_sizes.get_config(size)) / 1e9
    assert billions == pytest.approx(float(size.rstrip("b")), rel=0.15, abs=0.05)


@pytest.mark.parametrize("top_layers", [0, 24])
def test_splitting_the_vision_tower_adds_no_parameter(top_layers):
    config = kosmos1.get_config()
    config.model.perception.image.encoder.top_layers = top_layers
    assert count(config, "image/encoder/") == 303_179_776
    assert count(config, "image/encoder/top/") == top_layers * 12_596_224
