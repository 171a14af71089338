"""The weights as generation wants them: layers apart, matrices in the dtype of the arithmetic, the head filled up."""

from collections.abc import Iterable
from functools import partial

import jax
from flax import nnx
from jax.sharding import NamedSharding

from kosmos_jax.model import abstract_model, with_parameters
from kosmos_jax.model.int8 import Int8Linear, to_int8
from kosmos_jax.model.kosmos import filled_up
from kosmos_jax.model.layers import unstack
from kosmos_jax.parallel.sharding import Shardings, fitting

STACK = "decoder/layers/"
MATRICES = ("kernel", "embedding")


def inference_model(config, int8_weights: bool = False, int8_cache: bool = False):
    """The model of `config.model` with its decoder's layers apart and its head filled up, nothing allocated.

    One token does little with a layer's weights: taking them out of a stack, or filling the head up to a size that
    products like, would mean copying them for each token.

    Args:
      config: config.model.
      int8_weights: whether the kernels of the decoder's layers are Int8; the embedding, which is the head too, is not.
      int8_cache: whether keys and values are.
    """

    def separate(params):
        model = with_parameters(graph, params)
        model.embedding = nnx.Param(filled_up(model.embedding[...]))
        model.decoder.layers = unstack(model.decoder.layers)
        model.decoder.int8_cache = int8_cache
        for layer in model.decoder.layers if int8_weights else ():
            for owner, names in ((layer.attention, ("query", "key", "value", "out")), (layer, ("fc1", "fc2"))):
                for name in names:
                    setattr(owner, name, Int8Linear(getattr(owner, name)))
        return model

    graph, shapes = abstract_model(config)
    return nnx.eval_shape(separate, shapes)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _converted(array, dtype, int8: bool, count: int):
    """The layers of a parameter by the last part of their paths; `count` is 0 for one that has none."""
    layers = [array[i] for i in range(count)] if count else [array]
    if int8:
        return [to_int8(layer, axis=0)._asdict() for layer in layers]
    return [{"values": layer if dtype is None else layer.astype(dtype)} for layer in layers]


def _placed(array, dtype, int8: bool, count: int):
    """As `_converted`, of a shape: the shapes and shardings of the layers."""
    spec, mesh = array.sharding.spec, array.sharding.mesh
    spec = spec[1:] if count else spec
    place = lambda x: x.update(sharding=NamedSharding(mesh, fitting(spec, x.shape, mesh)))  # noqa: E731
    return jax.tree.map(place, jax.eval_shape(lambda x: _converted(x, dtype, int8, count), array))


def _filled_up(table_VD):
    """The embedding, or its shape, with the rows of the head, split as they then can be."""
    shape = jax.eval_shape(filled_up, table_VD)
    sharding = table_VD.sharding
    if isinstance(sharding, NamedSharding):
        spec = fitting(Shardings().embedding_vd, shape.shape, sharding.mesh)
        sharding = NamedSharding(sharding.mesh, spec)
    if isinstance(table_VD, jax.ShapeDtypeStruct):
        return shape.update(sharding=sharding)
    return jax.jit(filled_up, out_shardings=sharding)(table_VD)


def inference_weights(model, params: Iterable[tuple[str, jax.Array | jax.ShapeDtypeStruct]]):
    """The state of an `inference_model`; each parameter stays on the devices where it is.

    Args:
      model: of `inference_model`.
      params: pairs of path and array; one after another, so that what is converted can be freed. Shapes with shardings
        give a state of such.

    Returns:
      nnx.State.
    """
    state, found = nnx.state(model), {}
    wanted = {"/".join(str(key.key) for key in path[:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    for path, array in params:
        array = _filled_up(array) if path == "embedding" else array
        own, _, name = path.removeprefix(STACK).rpartition("/")
        dtype, stacked = model.dtype if name in MATRICES else None, path.startswith(STACK)
        int8 = stacked and name == "kernel" and f"{STACK}0/{own}/scale" in wanted
        convert = _placed if isinstance(array, jax.ShapeDtypeStruct) else _converted
        for i, layer in enumerate(convert(array, dtype, int8, array.shape[0] if stacked else 0)):
            place = f"{STACK}{i}/{own}/" if stacked else path.removesuffix(name)
            found[place + name] = layer["values"]
            if int8:
                found[place + "scale"] = layer["scale"]
        del array
    take = lambda path, _: found["/".join(str(key.key) for key in path[:-1])]  # noqa: E731
    return jax.tree_util.tree_map_with_path(take, state)
