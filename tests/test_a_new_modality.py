"""A third modality, touch: a host side, an encoder and a section of the config, and all of the project works with it.

Not a file of the project knows of it. It is trained with text and images, stopped, resumed, sharded, asked and planned.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import builtin, sources
from data_pipeline.documents import Document, Media, MediaError, Text
from data_pipeline.media import MEDIA
from kosmos_jax import checkpoint
from kosmos_jax.config import from_json, to_json, validate
from kosmos_jax.model.layers import linear, unpinned
from kosmos_jax.model.perception import ENCODERS
from kosmos_jax.training.trainer import train
from tests.training import tiny_run

FELT = ("soft", "hard")


class TouchHost:
    """Six readings of a sensor, as float32."""

    SUFFIXES, AUGMENT, FORMS = (".touch",), {"noise": 0.0}, "float32[6]"

    def decode(self, data, where):
        if len(data) != 24:
            raise MediaError(where, f"{len(data)} bytes are no six readings", "touch")
        return np.frombuffer(data, np.float32)

    def read(self, value, where):
        return value if isinstance(value, np.ndarray) and value.shape == (6,) else None

    def item(self, decoded, shape, draws=None, noise=0.0):
        return decoded if draws is None else decoded + noise * np.float32(draws[0] - 0.5)

    def problems(self, options):
        return iter(())


class Touch(nnx.Module):
    """Every reading is a vector of its own."""

    KEYS, STACKS, SHARDINGS = ("width",), (), ((r"reading/kernel", "widen_df"), (r"reading/bias", "replicated"))

    def __init__(self, config, shape, rngs, dtype, constrain=unpinned):
        self.width, self.reading = config.width, linear(1, config.width, rngs, dtype)

    def __call__(self, items_NP, *, remat="none", unroll=1):
        return jnp.tanh(self.reading(items_NP[..., None]))

    patches = staticmethod(lambda config, shape: shape[0])
    flops = staticmethod(lambda config, shape: {"reading": 2.0 * shape[0] * config.width})
    problems = staticmethod(lambda config, shape: iter(()))


class TouchAndSee:
    """A digit is shown, something is felt, and both are told."""

    KEYS, fingerprint = (), "touch and see"

    def __init__(self, config, split):
        self.images, self.labels = builtin.digits(split)

    def __len__(self):
        return 400

    def __getitem__(self, i):
        readings = np.random.default_rng(i).normal(2 * (i % 2) - 1, 0.3, 6).astype(np.float32)
        digit = builtin.WORDS[self.labels[i % 200]]
        told = Text(f"{FELT[i % 2]} {digit}.")
        return Document((Media("touch", readings.tobytes()), Media("image", self.images[i % 200]), told), f"touch[{i}]")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tiny run with a section of the config and a source for touch."""
    MEDIA["touch"], ENCODERS["touch"], sources.KINDS["touch_and_see"] = TouchHost(), Touch, TouchAndSee
    config = tiny_run.get_config()
    config.model.text.vocab_size += 2
    connector = config.model.perception.image.connector.to_dict()
    encoder = dict(kind="touch", width=8)
    config.model.perception.touch = dict(tokens=2, shape=(6,), dtype="float32", encoder=encoder, connector=connector)
    both = dict(per_row=dict(image=4, touch=4), augment=dict(touch=dict(noise=0.1)))
    config.data.sources.touch = dict(kind="touch_and_see", share=0.5, **both)
    config.data.cache = str(tmp_path_factory.mktemp("cache"))
    config.mesh.update(data=2, fsdp=2, tensor=2)
    yield config
    del MEDIA["touch"], ENCODERS["touch"], sources.KINDS["touch_and_see"]


def run(config, workdir, steps):
    config = config.copy_and_resolve_references()
    config.training.steps = steps
    config = from_json(to_json(config))
    validate(config)
    assert train(config, workdir) == 0
    return checkpoint.restore(workdir)


def test_a_third_modality_trains_resumes_shards_generates_and_plans(config, tmp_path):
    unbroken = run(config, tmp_path / "unbroken", 8)
    ...
