"""All that changes from step to step, and how it comes to be on a mesh."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kosmos_jax.model import Kosmos, abstract_model, parameters
from kosmos_jax.parallel.attention import attention_for
from kosmos_jax.parallel.sharding import assert_sharded, constrain_with, like_parameters, parameter_specs
from kosmos_jax.training.optimizer import split_frozen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a checkpoint needs besides the config.

    Attributes:
      step: int32[], updates tried so far; randomness and data follow from it and the seed.
      trainable, frozen: path -> float32 array; no gradient and no optimizer state for the second.
      optimizer: optax's state for `trainable`.
      average: exponential moving average of `trainable`; empty unless training.ema_decay is set.
      skipped: int32[], updates left out by the guards so far.
      skipped_in_row: int32[], the same since the last good one.
      typical_norm: float32[], moving average of the gradient's norm, for the spike guard.
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    optimizer: optax.OptState
    average: dict[str, jax.Array]
    skipped: jax.Array
    skipped_in_row: jax.Array
    typical_norm: jax.Array

    @property
    def parameters(self) -> dict[str, jax.Array]:
        return self.trainable | self.frozen


def initial_state(config, optimizer, key) -> TrainState:
    """A fresh model and optimizer; a pure function of the config and the key.

    Args:
      config: the complete config.
      optimizer: optax's.
      key: of the initial values.
    """
    params = parameters(Kosmos(config.model, nnx.Rngs(key)))
    trainable, frozen = split_frozen(params, config.training.frozen)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        trainable=trainable,
        frozen=frozen,
        optimizer=optimizer.init(trainable),
        # A copy: donated buffers of the step must not appear twice.
        average=jax.tree.map(jnp.copy, trainable) if config.training.ema_decay else {},
        skipped=zero,
        skipped_in_row=jnp.copy(zero),
        typical_norm=jnp.zeros((), jnp.float32),
    )


def replace_parameters(state: TrainState, given: dict[str, jax.Array]) -> TrainState:
    """A fresh state with some of its parameters given from elsewhere."""

    def mixed(params):
        return {path: given.get(path, array) for path, array in params.items()}

    average = {path: jnp.copy(given.get(path, array)) for path, array in state.average.items()}
    return replace(state, trainable=mixed(state.trainable), frozen=mixed(state.frozen), average=average)


def state_shardings(config, optimizer, mesh):
    """The state's shapes and shardings; nothing is allocated.

    Args:
      config: the complete config.
      optimizer: optax's.
      mesh: what the state is spread over.

    Returns:
      (nnx.GraphDef with activations pinned to the mesh and attention for its devices, TrainState of ShapeDtypeStruct,
      TrainState of NamedSharding).

    Raises:
      UserError: a large array would be replicated on every device.
    """
    graph, shapes = abstract_model(
        config.model, constrain=constrain_with(mesh), attention=attention_for(mesh, config.model.text)
    )
    specs = parameter_specs(config.model, shapes, mesh)
    abstract = jax.eval_shape(lambda: initial_state(config, optimizer, jax.random.key(0)))
    shardings = like_parameters(abstract, shapes, specs, mesh)
    assert_sharded(abstract, shardings, mesh)
    return graph, abstract, shardings
