"""The complete model: embed the tokens, put what was perceived where it belongs, decode, score the vocabulary."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from kosmos_jax.modality import PAD, modalities
from kosmos_jax.model import merging, perception
from kosmos_jax.model.attention import packed_attention
from kosmos_jax.model.decoder import Decoder
from kosmos_jax.model.layers import dropout, split_key, unpinned
from kosmos_jax.model.positions import sinusoids

# A head may be filled up to a multiple of this, so that any mesh can split it and products need no other copy of it;
# KOSMOS-1's 64,007 ids are odd.
VOCABULARY_MULTIPLE = 128


def compute_dtype(name: str):
    """The dtype of activations. "auto" is bfloat16 on accelerators and float32 on CPU, which has no faster one."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


class Kosmos(nnx.Module):
    """The model of `config.model`; parameters in float32, arithmetic in `config.dtype`.

    Each modality of the config is a `Perception` under its own name, so that the parameters of images are those whose
    paths begin with image/.

    Args:
      config: config.model.
      rngs: of the initial values.
      constrain: (x, name) -> x, pins the sharding of an activation: "act_btd" for the decoder's stream, "items_npd" for
        an encoder's, and those between; kosmos_jax.parallel.sharding has the names and makes one for a mesh.
      attention: of packed rows; kosmos_jax.parallel.attention makes one for the devices of a mesh.
    """

    def __init__(self, config, rngs: nnx.Rngs, constrain=unpinned, attention=packed_attention):
        text, dtype = config.text, compute_dtype(config.dtype)
        self.config = config
        self.dtype = dtype
        self.constrain = constrain
        self.modalities = modalities(config)
        table_VD = jax.random.normal(rngs.params(), (text.vocab_size, text.width)) * text.width**-0.5
        self.embedding = nnx.Param(table_VD.at[PAD].set(0.0))
        for name in (modality.name for modality in self.modalities):
            setattr(self, name, perception.Perception(config.perception[name], text.width, rngs, dtype, constrain))
        self.decoder = Decoder(text, rngs, dtype, constrain, attention)

    def perceive(self, media, *, key=None):
        """The table of all vectors of all items of a batch, in the order of `modality.Table`.

        Args:
          media: by modality, [N, *shape]; a modality may be missing.
          key: dropout key, or None.

        Returns:
          float[M, D], or None when there are no media.
        """
        names = [modality.name for modality in self.modalities if modality.name in media]
        remat, unroll = self.config.remat, self.config.scan_unroll
        tables = []
        for name, own_key in zip(names, split_key(key, len(names)), strict=True):
            vectors_NQD = getattr(self, name)(media[name], key=own_key, remat=remat, unroll=unroll)
            tables.append(rearrange(merging.by_width(vectors_NQD, self.constrain), "n q d -> (n q) d"))
        return jnp.concatenate(tables) if tables else None

    def embed(self, tokens_BT, slots_BT, vectors_MD, positions_BT, *, key=None):
        """Vectors of tokens and items in one stream, scaled by sqrt(D) (the items too), with positions added.

        Args:
          tokens_BT: int32[B, T]; the value in an item's slot does not matter.
          slots_BT: int32[B, T], see `merging.merge`.
          vectors_MD: float[M, D], see `perceive`, or None for a stream of text alone.
          positions_BT: int32[B, T], 0 for a document's first token.
          key: dropout key, or None.

        Returns:
          float[B, T, D].
        """
        text, table_VD = self.config.text, self.embedding[...]
        x_BTD = merging.look_up(table_VD, tokens_BT, slots_BT, vectors_MD, self.dtype, self.constrain)
        x_BTD = x_BTD * math.sqrt(text.width)
        if text.positions != "xpos":
            x_BTD = x_BTD + sinusoids(positions_BT, text.width).astype(x_BTD.dtype)
        return dropout(x_BTD, text.dropout, key)

    def __call__(self, tokens_BT, segments_BT, positions_BT, slots_BT=None, media=None, *, key=None):
        """Hidden states of complete rows; `logits` turns them into scores.

        Args:
          tokens_BT, segments_BT, positions_BT, slots_BT: int32[B, T], see data_pipeline's batch.
          media: by modality, [N, *shape]; None for text alone.
          key: dropout key; None for no dropout.

        Returns:
          float[B, T, D].
        """
        perceive_key, embed_key, decoder_key = split_key(key, 3)
        vectors_MD = self.perceive(media or {}, key=perceive_key)
        x_BTD = self.embed(tokens_BT, slots_BT, vectors_MD, positions_BT, key=embed_key)
        remat, unroll = self.config.remat, self.config.scan_unroll
        return self.decoder(x_BTD, segments_BT, positions_BT, key=decoder_key, remat=remat, unroll=unroll)

    def logits(self, hidden):
        """float[..., D] -> float32[..., V]: the product with the embedding table, which the head shares."""
        return scores(hidden, self.embedding[...].astype(self.dtype), self.config.text.vocab_size)


def filled_up(table_VD):
    """The table with rows of zeros up to a multiple of `VOCABULARY_MULTIPLE`."""
    return jnp.pad(table_VD, ((0, -table_VD.shape[0] % VOCABULARY_MULTIPLE), (0, 0)))


def scores(hidden, head_VD, vocabulary: int):
    """The output head.

    Args:
      hidden: float[..., D].
      head_VD: float[V, D], the embedding table, possibly filled up.
      vocabulary: rows of it that are tokens.

    Returns:
      float32[..., V], -inf for what is no token.
    """
    found, rows = jnp.einsum("...d,vd->...v", hidden, head_VD, preferred_element_type=jnp.float32), head_VD.shape[0]
    return found if rows == vocabulary else jnp.where(jnp.arange(rows) < vocabulary, found, -jnp.inf)


def stacks(config) -> tuple[str, ...]:
    """Paths of the modules of `config.model` whose every parameter has a leading axis of layers."""
    found = [f"{m.name}/{path}" for m in modalities(config) for path in perception.stacks(config.perception[m.name])]
    return ("decoder/layers", *found)


def parameters(model: Kosmos) -> dict[str, jax.Array]:
    """All parameters by path, e.g. {"decoder/layers/fc1/kernel": float32[L, D, F], ...}."""
    return flatten_dict(nnx.to_pure_dict(nnx.state(model)), sep="/")


def with_parameters(graph: nnx.GraphDef, params) -> Kosmos:
    """The model of a graph and a dictionary of `parameters`; free of cost under jax.jit."""
    return nnx.merge(graph, unflatten_dict(dict(params), sep="/"))


def abstract_model(config, **kwargs):
    """Graph and parameter shapes of `config.model`, with nothing allocated.

    Returns:
      (nnx.GraphDef, dictionary from path to jax.ShapeDtypeStruct).
    """
    model = nnx.eval_shape(lambda: Kosmos(config, nnx.Rngs(0), **kwargs))
    return nnx.split(model)[0], parameters(model)
