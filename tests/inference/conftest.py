"""A generator of random weights and a tokenizer of its own, both tiny."""

import numpy as np
import pytest

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.inference.generator import Generator
from kosmos_jax.model import parameters
from tests.data_pipeline.demo_data import image
from tests.inference.reference import Reference
from tests.model.tiny import model_config, random_model

TEXTS = [
    "The digit is seven.",
    "A handwritten four, and a handwritten nine.",
    "one plus two equals three",
    "Whoever reads this sees words, some of them twice: words.",
]


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=44, modalities=[image(tokens=4, size=16)])


@pytest.fixture(scope="session")
def config(tokenizer):
    return model_config(**{"text.vocab_size": tokenizer.size, "text.layers": 2, "perception.image.encoder.layers": 2})


@pytest.fixture(scope="session")
def params(config):
    return parameters(random_model(config))


@pytest.fixture(scope="session")
def generator(config, params, tokenizer):
    return Generator(config, params, tokenizer)


@pytest.fixture(scope="session")
def reference(config, params, tokenizer):
    return Reference(config, params, tokenizer)


@pytest.fixture(scope="session")
def prompts():
    """Of different lengths, with no image, one and two."""
    images = list(np.random.default_rng(7).integers(0, 256, (3, 24, 20, 3), np.uint8))
    return ["The digit is", [images[0], "A handwritten"], [images[1], "plus", images[2], "equals"], ""]
