"""What `kosmos train` compiles and `kosmos plan` examines: the same step, from the same shapes and shardings."""

from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.layout import batch_layout
from kosmos_jax.parallel.flags import compiler_options
from kosmos_jax.parallel.mesh import row_shards
from kosmos_jax.training.feed import batch_shardings
from kosmos_jax.training.loss import layout_on
from kosmos_jax.training.optimizer import learning_rate, make_optimizer
from kosmos_jax.training.state import TrainState, state_shardings
from kosmos_jax.training.step import make_train_step


class Step(NamedTuple):
    """A training step for a mesh, not yet compiled.

    Attributes:
      function: jit of (state, batch) -> (state, metrics); the state's buffers are donated.
      graph: the model's structure, with activations pinned to the mesh.
      optimizer: optax's.
      abstract: TrainState of ShapeDtypeStruct.
      shardings: TrainState of NamedSharding.
    """

    function: Any
    graph: Any
    optimizer: Any
    abstract: TrainState
    shardings: TrainState


def make_step(config, mesh) -> Step:
    """The training step of a config on a mesh; nothing is allocated, no data is opened.

    Raises:
      UserError: a large array would be replicated on every device.
    """
    training = config.training
    optimizer = make_optimizer(training.optimizer, training.steps)
    graph, abstract, shardings = state_shardings(config, optimizer, mesh)
    schedule = learning_rate(training.optimizer, training.steps)
    function = jax.jit(
        make_train_step(graph, optimizer, config, schedule, sorted(config.data.sources), layout_on(mesh)),
        donate_argnums=0,
        in_shardings=(shardings, batch_shardings(config.model, mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        compiler_options=compiler_options(mesh),
    )
    return Step(function, graph, optimizer, abstract, shardings)


def batch_shapes(config, mesh) -> dict:
    """The arrays of a global batch as jax.ShapeDtypeStruct, as `Mixture.arrays` has them.

    Raises:
      UserError: rows cannot be divided over microbatches and devices, or a source gets none.
    """
    arrays = batch_layout(config, row_shards(mesh)).arrays
    return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), arrays)
