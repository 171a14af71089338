"""Cross-entropy over a large vocabulary, without an array of all scores."""

from functools import partial

import jax
import jax.numpy as jnp

from kosmos_jax.model.layers import unpinned


def _chunks(x_BTx, size: int):
    """[B, T, ...] -> [T / size, B, size, ...]; rows stay whole, so a sharding over B is kept."""
    rows, length = x_BTx.shape[:2]
    return jnp.swapaxes(x_BTx.reshape(rows, length // size, size, *x_BTx.shape[2:]), 0, 1)


def _joined(x_CBtx):
    count, rows, size = x_CBtx.shape[:3]
    return jnp.swapaxes(x_CBtx, 0, 1).reshape(rows, count * size, *x_CBtx.shape[3:])


def chunk_length(tokens: int, wanted: int) -> int:
    """The largest divisor of `tokens` that is at most `wanted` (0 for all at once)."""
    wanted = min(wanted or tokens, tokens)
    return next(size for size in range(wanted, 0, -1) if tokens % size == 0)


def _scores(hidden_BtD, table_VD, targets_Bt):
    """Scores, their log-sum-exp and the negative log-likelihood of the targets (0 where there is none)."""
    scores_BtV = jnp.einsum("btd,vd->btv", hidden_BtD, table_VD, preferred_element_type=jnp.float32)
    lse_Bt = jax.nn.logsumexp(scores_BtV, axis=-1)
    picked_Bt = jnp.take_along_axis(scores_BtV, jnp.maximum(targets_Bt, 0)[..., None], axis=-1)[..., 0]
    return scores_BtV, lse_Bt, jnp.where(targets_Bt >= 0, lse_Bt - picked_Bt, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy(hidden_BTD, table_VD, targets_BT, chunk: int, constrain=unpinned):
    """Negative log-likelihoods of the targets, and their sum; B x T x V scores never exist at once.

    The gradients of the *sum* are made in the same pass that makes the loss, chunk by chunk, while the scores are at
    hand: three matrix products for each chunk in all, as many as without chunks.

    Args:
      hidden_BTD: float[B, T, D], the decoder's output.
      table_VD: float32[V, D], the embedding table; it multiplies in the dtype of `hidden_BTD`, its gradient is float32.
      targets_BT: int32[B, T], the token to predict, -1 for none.
      chunk: tokens of every row that are scored at once; see `chunk_length`.
      constrain: pins the sharding of the table's gradient, which the compiler would else keep whole on every device.

    Returns:
      (float32[], the sum; float32[B, T], each target's own). Only the sum has a gradient.
    """
    size = chunk_length(hidden_BTD.shape[1], chunk)
    table_VD = table_VD.astype(hidden_BTD.dtype)

    def body(_, chunk_inputs):
        return None, _scores(*chunk_inputs[:1], table_VD, chunk_inputs[1])[2]

    nll_BT = _joined(jax.lax.scan(body, None, (_chunks(hidden_BTD, size), _chunks(targets_BT, size)))[1])
    return nll_BT.sum(), nll_BT


def _forward(hidden_BTD, table_VD, targets_BT, chunk, constrain):
    size = chunk_length(hidden_BTD.shape[1], chunk)
    table_VD = table_VD.astype(hidden_BTD.dtype)

    def body(gradient_VD, chunk_inputs):
        hidden_BtD, targets_Bt = chunk_inputs
        scores_BtV, lse_Bt, nll_Bt = _scores(hidden_BtD, table_VD, targets_Bt)
        hit_BtV = targets_Bt[..., None] == jnp.arange(table_VD.shape[0])
        error_BtV = jnp.exp(scores_BtV - lse_Bt[..., None]) - hit_BtV
        error_BtV = jnp.where(targets_Bt[..., None] >= 0, error_BtV, 0.0).astype(hidden_BtD.dtype)
        gradient_BtD = jnp.einsum("btv,vd->btd", error_BtV, table_VD)
        gradient_VD += jnp.einsum("btv,btd->vd", error_BtV, hidden_BtD, preferred_element_type=jnp.float32)
        return constrain(gradient_VD, "embedding_vd"), (nll_Bt, gradient_BtD)

    zero_VD = jnp.zeros(table_VD.shape, jnp.float32)
    inputs = _chunks(hidden_BTD, size), _chunks(targets_BT, size)
    gradient_VD, (nll_CBt, gradient_CBtD) = jax.lax.scan(body, zero_VD, inputs)
    nll_BT = _joined(nll_CBt)
    return (nll_BT.sum(), nll_BT), (_joined(gradient_CBtD), gradient_VD)


def _backward(chunk, constrain, gradients, cotangents):
    gradient_BTD, gradient_VD = gradients
    of_sum, _ = cotangents
    return (gradient_BTD * of_sum).astype(gradient_BTD.dtype), gradient_VD * of_sum, None


cross_entropy.defvjp(_forward, _backward)
