"""KOSMOS-1 whole: embed the tokens, put the images where they belong, decode, and read the vocabulary's scores."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from kosmos_jax.model.attention import packed_attention
from kosmos_jax.model.connector import CONNECTORS
from kosmos_jax.model.decoder import Decoder
from kosmos_jax.model.layers import dropout, split_key, unpinned
from kosmos_jax.model.positions import sinusoids
from kosmos_jax.model.vision import Vision

PAD = 1
# Paths of the modules whose every parameter has a leading axis of layers.
STACKS = ("decoder/layers", "connector/layers", "vision/trunk", "vision/top")


def merge_images(text_BTD, images_NQD, slots_BT):
    """Puts image vectors where the token stream has image slots.

    Args:
      text_BTD: float[B, T, D], embedded tokens; whatever stands in a slot is overwritten.
      images_NQD: float[N, Q, D], the images of the whole batch in one flat buffer.
      slots_BT: int32[B, T], -1 for text, otherwise n * Q + q: image n's q-th vector.

    With Q = 2, one image in row 0 and two in row 1 (t is text):

        tokens   t  <0> <0>  t   t          <1> <1>  t  <2> <2>
        slots   -1   0   1  -1  -1           2   3  -1   4   5

    A gather and a select rather than a scatter, which is slow on TPU. Text asks for a vector beyond the last, which the
    backward pass drops instead of adding zeros to some image; with no image in the batch (every slot -1) the gradient
    of the images is zero.

    Returns:
      float[B, T, D], the dtype of `text_BTD`.
    """
    flat = rearrange(images_NQD, "n q d -> (n q) d")
    slots_or_beyond_BT = jnp.where(slots_BT >= 0, slots_BT, flat.shape[0])
    picked_BTD = jnp.take(flat, slots_or_beyond_BT, axis=0, mode="fill", fill_value=0)
    return jnp.where((slots_BT >= 0)[..., None], picked_BTD.astype(text_BTD.dtype), text_BTD)


def compute_dtype(name: str):
    """The dtype of activations. "auto" is bfloat16 on accelerators and float32 on CPU, which has no faster one."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


class Kosmos(nnx.Module):
    """The model of `config.model`; parameters in float32, arithmetic in `config.dtype`.

    `constrain(x, name)` pins the sharding of an activation: "act_btd" for the decoder's stream, "images_nqd" for image
    vectors, and those between. The default does nothing; kosmos_jax.parallel.sharding has the names and makes one for a
    mesh, and kosmos_jax.parallel.attention an `attention` for its devices.
    """

    def __init__(self, config, rngs: nnx.Rngs, constrain=unpinned, attention=packed_attention):
        text, dtype = config.text, compute_dtype(config.dtype)
        self.config = config
        self.dtype = dtype
        self.constrain = constrain
        table_VD = jax.random.normal(rngs.params(), (text.vocab_size, text.width)) * text.width**-0.5
        self.embedding = nnx.Param(table_VD.at[PAD].set(0.0))
        self.vision = Vision(config.vision, rngs, dtype, constrain)
        make_connector = CONNECTORS[config.connector.kind]
        self.connector = make_connector(config.connector, config.vision.width, text.width, rngs, dtype)
        self.decoder = Decoder(text, rngs, dtype, constrain, attention)

    def encode_images(self, images_NHWC, *, key=None):
        """uint8 (or normalised float) [N, H, W, 3] -> float[N, Q, D], as the decoder's stream wants them."""
        features = self.vision(images_NHWC, remat=self.config.remat, unroll=self.config.scan_unroll)
        return self.constrain(self.connector(features, key=key), "images_nqd")

    def embed(self, tokens_BT, slots_BT, images_NQD, positions_BT, *, key=None):
        """Token and image vectors in one stream, scaled by sqrt(D) (the images too), with positions added.

        Args:
          tokens_BT: int32[B, T]; the value in an image slot does not matter.
          slots_BT: int32[B, T], see `merge_images`.
          images_NQD: float[N, Q, D], or None for a stream without images.
          positions_BT: int32[B, T], 0 for a document's first token.
          key: dropout key, or None.

        Returns:
          float[B, T, D].
        """
        text = self.config.text
        tokens_BT = self.constrain(tokens_BT, "looked_up_bt")
        x_BTD = jnp.take(self.embedding[...], tokens_BT, axis=0).astype(self.dtype)
        x_BTD = self.constrain(x_BTD, "embedded_btd")
        if images_NQD is not None:
            slots_BT = self.constrain(slots_BT, "looked_up_bt")
            images_NQD = self.constrain(self.constrain(images_NQD, "images_by_copy_nqd"), "embedded_nqd")
            x_BTD = self.constrain(merge_images(x_BTD, images_NQD, slots_BT), "embedded_btd")
        x_BTD = self.constrain(x_BTD * math.sqrt(text.width), "act_btd")
        if text.positions != "xpos":
            x_BTD = x_BTD + sinusoids(positions_BT, text.width).astype(x_BTD.dtype)
        return dropout(x_BTD, text.dropout, key)

    def __call__(self, tokens_BT, segments_BT, positions_BT, slots_BT=None, images_NHWC=None, *, key=None):
        """Hidden states of whole rows; `logits` turns them into scores.

        Args:
          tokens_BT, segments_BT, positions_BT, slots_BT: int32[B, T], see data_pipeline's batch.
          images_NHWC: uint8[N, H, W, 3] or None for text alone.
          key: dropout key; None for no dropout.

        Returns:
          float[B, T, D].
        """
        connector_key, embed_key, decoder_key = split_key(key, 3)
        images_NQD = None if images_NHWC is None else self.encode_images(images_NHWC, key=connector_key)
        x_BTD = self.embed(tokens_BT, slots_BT, images_NQD, positions_BT, key=embed_key)
        remat, unroll = self.config.remat, self.config.scan_unroll
        return self.decoder(x_BTD, segments_BT, positions_BT, key=decoder_key, remat=remat, unroll=unroll)

    def logits(self, hidden):
        """float[..., D] -> float32[..., V]: the product with the embedding table, which the head shares."""
        table_VD = self.embedding[...].astype(self.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table_VD, preferred_element_type=jnp.float32)


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
