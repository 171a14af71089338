"""What devices send each other in a step, read from the compiled program of eight CPU devices."""

import numpy as np
import pytest

from kosmos_jax.config import load_config
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.planning import hlo
from kosmos_jax.planning.collectives import collectives
from kosmos_jax.training.compile import batch_shapes, make_step

CONFIG = "tests/training/tiny_run.py"
FLOAT = 4


@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=4), dict(data=1, fsdp=8)], ids=str)
def test_no_device_receives_all_images_or_all_rows(sizes):
    """Of image vectors and embedded rows it gets the part of the width that it looks up, or its own rows.

    Both are larger here than any weight that is gathered.
    """
    overrides = ["data.batch_rows=128", "training.loss_chunk=128", *(f"mesh.{axis}={n}" for axis, n in sizes.items())]
    config = load_config(CONFIG, overrides)
    mesh = make_mesh(config.mesh)
    step, batch = make_step(config, mesh), batch_shapes(config, mesh)
    program = hlo.parse(step.function.lower(step.abstract, batch).compile().as_text())
    found = collectives(program, np.zeros(mesh.size, int))
    moved = [one.bytes for one in found if one.kind in ("all-gather", "all-to-all") or "_take" in one.source]
    width, (_, rows, length) = config.model.text.width, batch["tokens"].shape
    all_images = batch["images"].shape[1] * config.model.connector.tokens * width * FLOAT
    all_rows = rows * length * width * FLOAT
    assert all_rows / mesh.size / 2 < max(moved) < min(all_images, all_rows) / 2
