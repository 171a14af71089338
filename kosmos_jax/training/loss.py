"""Cross-entropy over a large vocabulary, without an array of all scores."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from kosmos_jax.model.kosmos import filled_up, scores
from kosmos_jax.model.layers import unpinned
from kosmos_jax.parallel.sharding import constrain_with


def chunk_length(tokens: int, wanted: int) -> int:
    """The largest divisor of `tokens` that is at most `wanted` (0 for all at once)."""
    wanted = min(wanted or tokens, tokens)
    return next(size for size in range(wanted, 0, -1) if tokens % size == 0)


@dataclass(frozen=True)
class Layout:
    """How a mesh splits the tokens of a batch, for the loss.

    Attributes:
      copies: copies of the state, each with rows of its own.
      inside: ways in which the rows of one copy are split.
      parts: ways in which the tokens of a row are split.
      constrain: pins shardings, see kosmos_jax/parallel/sharding.py.
    """

    copies: int = 1
    inside: int = 1
    parts: int = 1
    constrain: Callable = unpinned


ONE_DEVICE = Layout()


def layout_on(mesh) -> Layout:
    """The layout of the batches of a mesh."""
    return Layout(mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["context"], constrain_with(mesh))


class _Chunks:
    """Cuts [B, T, ...] into [chunks, B, t, ...] for a loop. Every device has its part of each chunk.

    With the tokens of a row split over two devices, a row of eight tokens in chunks of four:

        device  0 0 0 0 1 1 1 1
        chunk   0 0 1 1 0 0 1 1
    """

    def __init__(self, rows: int, tokens: int, wanted: int, layout: Layout):
        """Args: wanted: tokens of a chunk on each device, 0 for all."""
        copies, shards, parts = layout.copies, layout.copies * layout.inside, layout.parts
        self.copies, self.row_shards = (copies, shards) if rows % shards == 0 else (1, 1)
        self.parts = parts if tokens % parts == 0 else 1
        rows_here = rows // self.row_shards
        each = chunk_length(tokens // self.parts, max(1, wanted // rows_here) if wanted else 0)
        self._sizes = dict(p=self.parts, t=each)

    def cut(self, x_BTx):
        return rearrange(x_BTx, "b (p c t) ... -> c b (p t) ...", **self._sizes)

    def joined(self, x_CBtx):
        return rearrange(x_CBtx, "c b (p t) ... -> b (p c t) ...", **self._sizes)


def _head(table_VD, dtype, constrain):
    """The table as the products take it: in their dtype, filled up with zeros, gathered once for all chunks."""
    return constrain(filled_up(table_VD.astype(dtype)), "head_vd")


def _scores(hidden_BtD, head_VD, targets_Bt, vocabulary: int):
    """Scores, their log-sum-exp and the negative log-likelihood of the targets (0 where there is none)."""
    scores_BtV = scores(hidden_BtD, head_VD, vocabulary)
    lse_Bt = jax.nn.logsumexp(scores_BtV, axis=-1)
    picked_Bt = jnp.take_along_axis(scores_BtV, jnp.maximum(targets_Bt, 0)[..., None], axis=-1)[..., 0]
    return scores_BtV, lse_Bt, jnp.where(targets_Bt >= 0, lse_Bt - picked_Bt, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy(hidden_BTD, table_VD, targets_BT, chunk: int, layout: Layout = ONE_DEVICE):
    """Negative log-likelihoods of the targets, and their sum; B x T x V scores never exist at once.

    The gradients of the *sum* are made in the same pass that makes the loss, chunk by chunk, while the scores are at
    hand: three matrix products for each chunk in all, as many as without chunks. Each device adds up the gradient of
    the table from its own tokens; devices exchange it once, after the last chunk.

    Args:
      hidden_BTD: float[B, T, D], the decoder's output.
      table_VD: float32[V, D], the embedding table; it multiplies in the dtype of `hidden_BTD`, its gradient is float32.
      targets_BT: int32[B, T], the token to predict, -1 for none.
      chunk: tokens that each device scores at once, at most (one of each of its rows at least); 0 for all.
      layout: how a mesh splits the tokens.

    Returns:
      (float32[], the sum; float32[B, T], each target's own). Only the sum has a gradient.
    """
    chunks = _Chunks(*targets_BT.shape, chunk, layout)
    head_VD = _head(table_VD, hidden_BTD.dtype, layout.constrain)

    def body(_, chunk_inputs):
        hidden_BtD, targets_Bt = chunk_inputs
        return None, _scores(hidden_BtD, head_VD, targets_Bt, table_VD.shape[0])[2]

    nll_BT = chunks.joined(jax.lax.scan(body, None, (chunks.cut(hidden_BTD), chunks.cut(targets_BT)))[1])
    return nll_BT.sum(), nll_BT


def _forward(hidden_BTD, table_VD, targets_BT, chunk, layout):
    constrain, chunks = layout.constrain, _Chunks(*targets_BT.shape, chunk, layout)
    head_VD = _head(table_VD, hidden_BTD.dtype, layout.constrain)

    def by_device(x_Btx):
        return rearrange(x_Btx, "(r b) (p t) x -> (r p) (b t) x", r=chunks.row_shards, p=chunks.parts)

    def body(gradient_RDV, chunk_inputs):
        hidden_BtD, targets_Bt = chunk_inputs
        scores_BtV, lse_Bt, nll_Bt = _scores(hidden_BtD, head_VD, targets_Bt, table_VD.shape[0])
        hit_BtV = targets_Bt[..., None] == jnp.arange(head_VD.shape[0])
        error_BtV = jnp.exp(scores_BtV - lse_Bt[..., None]) - hit_BtV
        error_BtV = jnp.where(targets_Bt[..., None] >= 0, error_BtV, 0.0).astype(hidden_BtD.dtype)
        gradient_BtD = jnp.einsum("btv,vd->btd", error_BtV, head_VD)
        gradient_RDV += jnp.einsum(
            "rnv,rnd->rdv", by_device(error_BtV), by_device(hidden_BtD), preferred_element_type=jnp.float32
        )
        return constrain(gradient_RDV, "partial_rdv"), (nll_Bt, gradient_BtD)

    vocabulary, width = head_VD.shape
    zero_RDV = jnp.zeros((chunks.row_shards * chunks.parts, width, vocabulary), jnp.float32)
    zero_RDV = constrain(zero_RDV, "partial_rdv")
    inputs = chunks.cut(hidden_BTD), chunks.cut(targets_BT)
    gradient_RDV, (nll_CBt, gradient_CBtD) = jax.lax.scan(body, zero_RDV, inputs)
    # First inside each copy of the state, so that the slow network between copies carries a part for each device.
    summed_CDV = constrain(rearrange(gradient_RDV, "(c r) d v -> c r d v", c=chunks.copies).sum(1), "copies_cdv")
    # First the exchange, then the cut: XLA for TPU fails where it tries to make one of the two.
    exchanged_VD = jax.lax.optimization_barrier(constrain(summed_CDV.sum(0).T, "embedding_vd"))
    gradient_VD = constrain(exchanged_VD[: table_VD.shape[0]], "embedding_vd")
    nll_BT = chunks.joined(nll_CBt)
    return (nll_BT.sum(), nll_BT), (chunks.joined(gradient_CBtD), gradient_VD)


def _backward(chunk, layout, gradients, cotangents):
    gradient_BTD, gradient_VD = gradients
    of_sum, _ = cotangents
    return (gradient_BTD * of_sum).astype(gradient_BTD.dtype), gradient_VD * of_sum, None


cross_entropy.defvjp(_forward, _backward)
