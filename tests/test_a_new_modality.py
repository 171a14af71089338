"""A third modality, touch: a host side, an encoder and a section of the config, and all of the project works with it.

Not a file of the project knows of it. It is trained with text and images on eight devices, resumed, asked and planned.
"""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from data_pipeline import builtin, readers
from data_pipeline.documents import Document, Media, MediaError, Text
from data_pipeline.media import MEDIA
from kosmos_jax import checkpoint
from kosmos_jax.config import from_json, to_json, validate
from kosmos_jax.inference.generator import Generator
from kosmos_jax.model.layers import linear, unpinned
from kosmos_jax.model.perception import ENCODERS
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.planning.plan import model_flops
from kosmos_jax.training.compile import batch_shapes, make_step
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

    def stored(self, data, decoded, shape, noise=0.0):
        return data

    def problems(self, options):
        return iter(())


class Touch(nnx.Module):
    """Every reading is a vector of its own."""

    DTYPES, KEYS, STACKS = ("float32",), ("width",), ()
    SHARDINGS = ((r"reading/kernel", "widen_df"), (r"reading/bias", "replicated"))

    def __init__(self, config, shape, rngs, dtype, constrain=unpinned):
        self.width, self.reading = config.width, linear(1, config.width, rngs, dtype)

    def __call__(self, items_NP, *, remat="none", unroll=1):
        return jnp.tanh(self.reading(items_NP[..., None]))

    described = staticmethod(lambda shape, tokens: f"{shape[0]} readings")
    patches = staticmethod(lambda config, shape: shape[0])
    flops = staticmethod(lambda config, shape: {"reading": 2.0 * shape[0] * config.width})
    problems = staticmethod(lambda config, shape: iter(()))


class TouchAndSee(readers.Listed):
    """Something is felt, a digit is shown, and both are told."""

    fingerprint = "touch and see"

    def __init__(self, split):
        self.images, self.labels = builtin.digits(split)

    def __len__(self):
        return 400

    def __getitem__(self, i):
        touch, image = readings(i), self.images[i % len(self.images)]
        told = Text(f"{FELT[i % 2]} {builtin.WORDS[self.labels[i % len(self.images)]]}.")
        return Document((Media("touch", touch), Media("image", image), told), f"touch[{i}]")


def readings(i):
    return np.random.default_rng(i).normal(2 * (i % 2) - 1, 0.3, 6).astype(np.float32).tobytes()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tiny run on four of eight devices, with a section and a source for touch."""
    MEDIA["touch"], ENCODERS["touch"], readers.KINDS["touch_and_see"] = TouchHost(), Touch, TouchAndSee
    config = tiny_run.get_config()
    config.model.text.vocab_size += 2  # <touch> and </touch>
    connector = dict(kind="perceiver", heads=2, layers=1, dropout=0.0)
    encoder = dict(kind="touch", width=8)
    config.model.perception.touch = dict(tokens=2, shape=(6,), dtype="float32", encoder=encoder, connector=connector)
    places = dict(per_row=dict(image=4, touch=4), augment=dict(touch=dict(noise=0.1)))
    config.data.sources.touch = dict(kind="touch_and_see", share=0.5, **places)
    config.data.cache = str(tmp_path_factory.mktemp("cache"))
    config.training.update(steps=6, checkpoint_every=3, keep_last=2)
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config = from_json(to_json(config))
    validate(config)
    yield config
    del MEDIA["touch"], ENCODERS["touch"], readers.KINDS["touch_and_see"]


@pytest.mark.slow
def test_a_third_modality_trains_resumes_shards_and_generates(config, tmp_path):
    assert train(config, tmp_path / "run") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped/checkpoints/6")
    assert train(config, tmp_path / "stopped") == 0
    run, resumed = (checkpoint.restore(tmp_path / name) for name in ("run", "stopped"))
    assert {path.split("/")[0] for path in run.params} == {"embedding", "decoder", "image", "touch"}
    for path, array in run.params.items():
        np.testing.assert_array_equal(resumed.params[path], array, err_msg=path)
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(last["loss/touch"]) and last["touch_items_per_second"] > 0 and 0 < last["touch_fill"] <= 1

    generator, felt = Generator(config.model, run.params, run.tokenizer), np.frombuffer(readings(1), np.float32)
    picture = Media("image", builtin.digits("test")[0][0])
    prompts = [["a", Media("touch", readings(i)), picture, "and", felt] for i in (0, 1)]
    assert len(generator.generate(prompts, max_new_tokens=4)) == 2
    (one, _), (other, _) = generator.score(prompts, ["soft", "soft"])
    assert one != other, "what is felt changes what is said"


def test_its_parameters_lie_on_the_mesh_and_its_work_is_planned(config):
    mesh = make_mesh(config.mesh)
    step, batch = make_step(config, mesh), batch_shapes(config, mesh)
    assert step.shardings.trainable["touch/encoder/reading/kernel"].spec == P(None, "tensor")
    assert batch["media"]["touch"].shape[2:] == (6,)
    planned = model_flops(config, step, batch)
    assert planned["touch/encoder/reading"] > 0 and planned["touch/connector"] > 0
