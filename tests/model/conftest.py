import pytest
from flax import nnx

from kosmos_jax.model import Kosmos
from tests.model.tiny import model_config, quick_jit


@pytest.fixture(scope="session")
def initial_model():
    """A model as training finds it, large enough for statistics; 4 decoder layers."""
    text = {"text.width": 64, "text.ffn": 256, "text.layers": 4, "text.vocab_size": 512}
    encoder = {"width": 48, "ffn": 160, "layers": 4, "top_layers": 1}
    encoder = {f"perception.image.encoder.{key}": value for key, value in encoder.items()}
    config = model_config(**text, **encoder, **{"perception.image.tokens": 32})
    return quick_jit(lambda: Kosmos(config, nnx.Rngs(0)))()
