"""What devices send each other in a step, read from the compiled program of eight CPU devices."""

import numpy as np
import pytest

from kosmos_jax.config import load_config
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.planning import hlo
from kosmos_jax.planning.collectives import collectives
from kosmos_jax.training.compile import batch_shapes, make_step

CONFIG = "tests/training/tiny_run.py"
FLOAT, DEVICES, CHUNKS = 4, 8, 8


@pytest.fixture(scope="module", params=[dict(data=2, fsdp=4), dict(data=1, fsdp=8)], ids=str)
def compiled(request):
    """(config, batch's shapes, collectives of a step): rows and images larger than weights, the loss in 8 chunks."""
    sizes = [f"mesh.{axis}={size}" for axis, size in request.param.items()]
    config = load_config(CONFIG, ["data.batch_rows=128", "training.loss_chunk=128", *sizes])
    mesh = make_mesh(config.mesh)
    step, batch = make_step(config, mesh), batch_shapes(config, mesh)
    program = hlo.parse(step.function.lower(step.abstract, batch).compile().as_text())
    return config, batch, collectives(program, np.zeros(mesh.size, int))


def test_no_device_receives_all_images_or_all_rows(compiled):
    """Of image vectors and embedded rows it gets the part of the width that it looks up, or its own rows."""
    config, batch, found = compiled
    moved = [one.bytes for one in found if one.kind in ("all-gather", "all-to-all") or "_take" in one.source]
    width, (_, rows, length) = config.model.text.width, batch["tokens"].shape
    all_images = batch["media"]["image"].shape[1] * config.model.perception.image.tokens * width * FLOAT
    all_rows = rows * length * width * FLOAT
    assert all_rows / DEVICES / 2 < max(moved) < min(all_images, all_rows) / 2


def test_the_gradient_of_the_head_is_exchanged_once_and_not_for_every_chunk(compiled):
    config, _, found = compiled
    table = config.model.text.vocab_size * config.model.text.width * FLOAT
    assert any(one.times == 1 and one.bytes > table / 2 for one in found)
    assert not [one for one in found if one.times >= CHUNKS and one.bytes > table / DEVICES]
