import pytest
from flax import nnx

from kosmos_jax.model import Kosmos
from tests.model.tiny import model_config, quick_jit


@pytest.fixture(scope="session")
def initial_model():
    """A model as training finds it, large enough for statistics; 4 decoder layers."""
    text = {"text.width": 64, "text.ffn": 256, "text.layers": 4, "text.vocab_size": 512}
    vision = {"vision.width": 48, "vision.ffn": 160, "vision.layers": 4, "vision.top_layers": 1}
    config = model_config(**text, **vision, **{"connector.tokens": 32})
    return quick_jit(lambda: Kosmos(config, nnx.Rngs(0)))()
