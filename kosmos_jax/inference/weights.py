"""The weights as generation wants them: layers apart, matrices in the dtype of the arithmetic."""

from collections.abc import Iterable
from functools import partial

import jax
from flax import nnx

from kosmos_jax.model import abstract_model, with_parameters
from kosmos_jax.model.layers import unstack

STACK = "decoder/layers/"
MATRICES = ("kernel", "embedding")


def inference_model(config):
    """The model of `config.model` with its decoder's layers apart, nothing allocated.

    One token does little with a layer's weights, and taking them out of a stack would mean copying them for each token.
    """

    def separate(params):
        model = with_parameters(graph, params)
        model.decoder.layers = unstack(model.decoder.layers)
        return model

    graph, shapes = abstract_model(config)
    return nnx.eval_shape(separate, shapes)


@partial(jax.jit, static_argnums=(1, 2))
def _converted(array, dtype, count):
    array = array if dtype is None else array.astype(dtype)
    return [array[i] for i in range(count)] if count else [array]


def inference_weights(model, params: Iterable[tuple[str, jax.Array]]):
    """The state of an `inference_model`; each parameter stays on the devices where it is.

    Args:
      model: of `inference_model`.
      params: pairs of path and array; one after another, so that what is converted can be freed.

    Returns:
      nnx.State.
    """
    found = {}
    for path, array in params:
        dtype = model.dtype if path.rpartition("/")[2] in MATRICES else None
        if path.startswith(STACK):
            layers = _converted(array, dtype, len(array))
            found |= {f"{STACK}{i}/{path.removeprefix(STACK)}": layer for i, layer in enumerate(layers)}
        else:
            (found[path],) = _converted(array, dtype, 0)
        del array
    take = lambda path, _: found["/".join(str(key.key) for key in path[:-1])]  # noqa: E731
    return jax.tree_util.tree_map_with_path(take, nnx.state(model))
