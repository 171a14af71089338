"""The decoder's input: vectors of tokens from the embedding table, vectors of items from what was perceived."""

import jax.numpy as jnp

from kosmos_jax.model.layers import unpinned


def merge(text_BTD, vectors_MD, slots_BT):
    """Puts the vectors of items where the token stream has slots for them.

    Args:
      text_BTD: float[B, T, D], embedded tokens; whatever stands in a slot is overwritten.
      vectors_MD: float[M, D], the vectors of all items of the batch, see `kosmos_jax.modality.Table`.
      slots_BT: int32[B, T], -1 for text, otherwise the number of a vector.

    With Q = 2, one image in row 0 and two in row 1 (t is text):

        tokens   t  <0> <0>  t   t          <1> <1>  t  <2> <2>
        slots   -1   0   1  -1  -1           2   3  -1   4   5

    A gather and a select rather than a scatter, which is slow on TPU. Text asks for a vector beyond the last, which the
    backward pass drops instead of adding zeros to some item; with no item in the batch (every slot -1) the gradient of
    the vectors is zero.

    Returns:
      float[B, T, D], the dtype of `text_BTD`.
    """
    slots_or_beyond_BT = jnp.where(slots_BT >= 0, slots_BT, vectors_MD.shape[0])
    picked_BTD = jnp.take(vectors_MD, slots_or_beyond_BT, axis=0, mode="fill", fill_value=0)
    return jnp.where((slots_BT >= 0)[..., None], picked_BTD.astype(text_BTD.dtype), text_BTD)


def by_width(vectors_NQD, constrain=unpinned):
    """The vectors of one modality as `merge` reads them on a mesh: split by width, every item on every device.

    In two steps, inside a copy of the state and then between copies: in one step XLA would first give all of them
    replicated to every device.
    """
    return constrain(constrain(vectors_NQD, "items_by_copy_nqd"), "embedded_nqd")


def look_up(table_VD, tokens_BT, slots_BT, vectors_MD, dtype, constrain=unpinned):
    """Vectors of tokens and items in one stream.

    On a mesh the width is split here and not the rows: what tokens look up lies on their own device, and so does what
    their gradients are added to. One exchange inside a copy of the state leads to the decoder's sharding.

    Args:
      table_VD: float32[V, D], the embedding table.
      tokens_BT: int32[B, T].
      slots_BT, vectors_MD: see `merge`; None for a stream of text alone.
      dtype: of the stream.
      constrain: pins shardings on a mesh, see `Kosmos`.

    Returns:
      float[B, T, D].
    """
    x_BTD = jnp.take(table_VD, constrain(tokens_BT, "looked_up_bt"), axis=0).astype(dtype)
    x_BTD = constrain(x_BTD, "embedded_btd")
    if vectors_MD is not None:
        x_BTD = constrain(merge(x_BTD, vectors_MD, constrain(slots_BT, "looked_up_bt")), "embedded_btd")
    return constrain(x_BTD, "act_btd")
