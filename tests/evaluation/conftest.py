import json

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipeline.builtin import Captions, Pydoc
from data_pipeline.documents import Text
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.config import from_json, to_json
from kosmos_jax.inference.generator import Generator
from kosmos_jax.modality import modalities
from kosmos_jax.model import Kosmos, parameters
from kosmos_jax.training.optimizer import make_optimizer
from kosmos_jax.training.state import initial_state
from tests.training import tiny_run


@pytest.fixture(scope="session")
def config():
    """A tiny run whose every task asks ten questions."""
    config = tiny_run.get_config()
    config.evaluation.update(tasks=("caption", "sum", "few_shot", "perplexity"), examples=10)
    return from_json(to_json(config))


@pytest.fixture(scope="session")
def tokenizer(config):
    documents = [*(Captions("train")[i] for i in range(60)), *(Pydoc("train")[i] for i in range(20))]
    texts = [part.text for document in documents for part in document.parts if isinstance(part, Text)]
    return Tokenizer.train(texts, config.data.tokenizer.vocab_size, modalities=modalities(config.model))


@pytest.fixture(scope="session")
def params(config):
    return jax.jit(lambda: parameters(Kosmos(config.model, nnx.Rngs(0))))()


@pytest.fixture(scope="session")
def generator(config, params, tokenizer):
    return Generator(config.model, params, tokenizer)


@pytest.fixture(scope="session")
def workdir(config, tokenizer, tmp_path_factory):
    """A run's folder with one checkpoint, of a model that has learned nothing."""
    folder = tmp_path_factory.mktemp("run")
    state = initial_state(config, make_optimizer(config.training.optimizer, 10), jax.random.key(0))
    manager = checkpoint.make_manager(folder)
    checkpoint.save(manager, state, config, tokenizer, {"next_step": 0})
    manager.wait_until_finished()
    manager.close()
    draw = np.random.default_rng(0)
    lines = [
        json.dumps({"step": i, "loss/text": 5 / (i + 1) + draw.random(), "loss/captions": None}) for i in range(50)
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 49, "val/text": 0.5}']) + "\n")
    return folder
