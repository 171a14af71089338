"""Checkpoints of tiny models with random weights, as training would leave them."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from configs import kosmos2
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.config import apply_overrides
from kosmos_jax.interop.export import export
from kosmos_jax.modality import KOSMOS2_TAGS
from kosmos_jax.model import parameters
from tests.data_pipeline.demo_data import image
from tests.inference.conftest import TEXTS
from tests.model.tiny import model_config, random_model

# A model that transformers' Kosmos-2 can hold.
SINUSOIDAL = {"text.positions": "sinusoidal", "perception.image.connector.layers": 1}


@pytest.fixture(scope="session", autouse=True)
def module_cache(tmp_path_factory):
    """A place of its own where transformers copies an export's code to; one for all, since Python imports it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=44, modalities=[image(tokens=4, size=16)])


@pytest.fixture(scope="session")
def save_checkpoint(tokenizer, tmp_path_factory):
    """Function from a seed, a tokenizer and changes of the tiny model to the folder of a checkpoint of it."""

    def save(seed=0, tokenizer=tokenizer, **changes):
        folder = tmp_path_factory.mktemp("run")
        model = model_config(**{"text.vocab_size": tokenizer.size} | changes)
        tree = kosmos2.get_config().to_dict() | dict(model=model.to_dict())
        described = dict(kosmos2_tags=KOSMOS2_TAGS[0] in tokenizer.tags, vocab_size=tokenizer.mask - 1)
        config = apply_overrides(tree, [f"data.tokenizer.{key}={value}" for key, value in described.items()])
        checkpoint.save_weights(folder, parameters(random_model(model, seed)), config, tokenizer)
        return folder

    return save


@pytest.fixture(scope="session")
def sinusoidal_run(save_checkpoint):
    return save_checkpoint(**SINUSOIDAL)


@pytest.fixture(scope="session")
def xpos_run(save_checkpoint):
    return save_checkpoint(**{"perception.image.connector.kind": "perceiver", "perception.image.connector.layers": 2})


@pytest.fixture(scope="session")
def remote_code(xpos_run, tmp_path_factory):
    """The folder of an hf-remote-code export."""
    out = tmp_path_factory.mktemp("export") / "hf_remote_code"
    export(xpos_run, "hf-remote-code", out)
    return out


@pytest.fixture(scope="session")
def processor(remote_code):
    return transformers.AutoProcessor.from_pretrained(remote_code, trust_remote_code=True)


@pytest.fixture(scope="session")
def load_model(remote_code):
    """Function from options of `from_pretrained` to the export's model."""
    load = transformers.AutoModelForImageTextToText.from_pretrained
    return lambda **options: load(remote_code, trust_remote_code=True, **options)


@pytest.fixture(scope="session")
def model(load_model):
    return load_model().eval()


@pytest.fixture
def trainable(load_model):
    """A model in training, with nothing dropped out."""
    model = load_model().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


@pytest.fixture(scope="session")
def images():
    drawn = np.random.default_rng(7).integers(0, 256, (7, 24, 20, 3), np.uint8)
    return [Image.fromarray(pixels) for pixels in drawn]
