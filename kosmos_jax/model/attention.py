"""The attention of all towers: causal over packed rows for the decoder, unmasked for vision and connector."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from kosmos_jax.model.layers import dropout, layer_norm, linear


def causal_mask(q_segments_BT, kv_segments_BS, q_positions_BT, kv_positions_BS):
    """Who may look at whom: the same document, and not the future.

    Two documents of three and two tokens in one row, then a place of padding:

        segments   1 1 1 2 2 0         looks at     1 1 1 2 2 0
        positions  0 1 2 0 1 0                   1  x . . . . .
                                                 1  x x . . . .
                                                 1  x x x . . .
                                                 2  . . . x . .
                                                 2  . . . x x .
                                                 0  . . . . . x

    Positions count within a document, so comparing them is the causal rule for a packed row and for a cache alike.
    Padding looks at padding: its result is never used, and no row of the softmax is empty.

    Args:
      q_segments_BT, q_positions_BT: int32[B, T], document and position of each query; segment 0 is padding.
      kv_segments_BS, kv_positions_BS: int32[B, S], of each key.

    Returns:
      bool[B, T, S].
    """
    same = q_segments_BT[:, :, None] == kv_segments_BS[:, None, :]
    return same & (kv_positions_BS[:, None, :] <= q_positions_BT[:, :, None])


def branch_mask(q_branches_BT, kv_branches_BS, q_positions_BT, kv_positions_BS):
    """Who may look at whom when several texts share their beginning: those of the same branch, and not the future.

    Two branches after a prompt of two tokens; branches are bits, so the prompt belongs to 1 + 2 = 3:

        text       p p a a           looks at     p p a b a b
                       b b             branches   3 3 1 2 1 2
        branches   3 3 1 2 1 2                3   x . . . . .
        positions  0 1 2 2 3 3                3   x x . . . .
                                              1   x x x . . .
                                              2   x x . x . .
                                              1   x x x . x .
                                              2   x x . x . x

    A beam search that drops b and continues a twice gives a's entries both bits; keys and values stay where they are.

    Args:
      q_branches_BT, kv_branches_BS: uint32[B, T], uint32[B, S]; 0 for padding and for empty entries.
      q_positions_BT, kv_positions_BS: int32, positions in a token's own text.

    Returns:
      bool[B, T, S].
    """
    shared = q_branches_BT[:, :, None] & kv_branches_BS[:, None, :] != 0
    return shared & (kv_positions_BS[:, None, :] <= q_positions_BT[:, :, None])


def attend(q_BTHK, k_BSHK, v_BSHK, mask_BTS=None, *, dropout_rate=0.0, key=None):
    """softmax(q k^T / sqrt(K)) v, the softmax in float32.

    Args:
      q_BTHK: float[B, T, H, K].
      k_BSHK, v_BSHK: float[B, S, H, K].
      mask_BTS: bool[B, T, S], True where a query may look; None for everywhere.
      dropout_rate, key: dropout of the attention weights; no key, no dropout.

    Returns:
      float[B, T, H, K].
    """
    # Heads before tokens: XLA for CPU then reads keys and values where they lie, and else may copy them first.
    q_BHTK, k_BHSK, v_BHSK = (x.swapaxes(1, 2) for x in (q_BTHK, k_BSHK, v_BSHK))
    scores = jnp.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHSK, preferred_element_type=jnp.float32)
    scores = scores * q_BTHK.shape[-1] ** -0.5
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, key).astype(v_BSHK.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", weights, v_BHSK).swapaxes(1, 2)


def packed_attention(q_BTHK, k_BTHK, v_BTHK, segments_BT, positions_BT, *, dropout_rate=0.0, key=None):
    """Causal attention of packed rows, each document by itself: the reference for kosmos_jax.parallel.attention.

    Args:
      q_BTHK, k_BTHK, v_BTHK: float[B, T, H, K].
      segments_BT: int32[B, T], which document a token belongs to; 0 is padding.
      positions_BT: int32[B, T], growing within a document, whose tokens stand side by side.
      dropout_rate, key: as in `attend`.

    Returns:
      float[B, T, H, K].
    """
    mask_BTS = causal_mask(segments_BT, segments_BT, positions_BT, positions_BT)
    return attend(q_BTHK, k_BTHK, v_BTHK, mask_BTS, dropout_rate=dropout_rate, key=key)


class Attention(nnx.Module):
    """Multi-head attention; `inner_norm` is sub-LN's LayerNorm between the heads and the output."""

    def __init__(self, width, heads, rngs, dtype, *, inner_norm=False, inits=None, use_bias=True, key_bias=True):
        """Builds the four projections.

        Args:
          width, heads: D and H.
          rngs: of the initial values.
          dtype: of the arithmetic.
          inner_norm: whether there is one.
          inits: by the projection's name, initializers `kernel` and `bias` for `linear`.
          use_bias: of all four projections; key_bias: of the keys' alone, which changes no softmax.
        """
        inits = inits or {}
        self.heads = heads
        for name in ("query", "key", "value", "out"):
            biased = use_bias and (key_bias or name != "key")
            setattr(self, name, linear(width, width, rngs, dtype, use_bias=biased, **inits.get(name, {})))
        self.inner_norm = layer_norm(width, rngs, dtype) if inner_norm else None

    def project(self, x_BTD, kv_BSD=None):
        """Queries of `x`, keys and values of `kv` (of `x` when None): float[B, T or S, H, K] each."""
        kv_BSD = x_BTD if kv_BSD is None else kv_BSD
        split = lambda y: rearrange(y, "b t (h k) -> b t h k", h=self.heads)  # noqa: E731
        return split(self.query(x_BTD)), split(self.key(kv_BSD)), split(self.value(kv_BSD))

    def output(self, heads_BTHK):
        """float[B, T, H, K] -> float[B, T, D]."""
        x_BTD = rearrange(heads_BTHK, "b t h k -> b t (h k)")
        return self.out(x_BTD if self.inner_norm is None else self.inner_norm(x_BTD))

    def __call__(self, x_BTD, kv_BSD=None, *, dropout_rate=0.0, key=None):
        """Unmasked attention of `x` over `kv`.

        Args:
          x_BTD, kv_BSD: float; `kv` is `x` where it is None.
          dropout_rate, key: of the attention weights.

        Returns:
          float[B, T, D].
        """
        return self.output(attend(*self.project(x_BTD, kv_BSD), dropout_rate=dropout_rate, key=key))
