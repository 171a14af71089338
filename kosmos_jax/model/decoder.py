"""The Magneto decoder: pre-LN with two more LayerNorms inside each layer (sub-LN), xPos on queries and keys."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kosmos_jax.model.attention import Attention, attend, branch_mask, packed_attention
from kosmos_jax.model.int8 import Int8, to_int8
from kosmos_jax.model.layers import (
    dropout,
    gelu,
    layer_norm,
    linear,
    scan_layers,
    split_key,
    stack,
    uniform,
    unpinned,
    unstack,
)
from kosmos_jax.model.positions import key_scales, xpos


class Cache(NamedTuple):
    """Keys and values of what was already read, in entries that any number of branches share.

    A layer's arrays stand alone, heads before entries: a step of generation then writes its own entries in place and
    reads the rest where it lies. Stacked over layers, or entries before heads, each step would first copy all of it.

    Attributes:
      k_BHSK, v_BHSK: for each layer float[B, H, S, K]; keys are rotated already. Or Int8 of that shape: keys then have
        no xPos scale yet, which spans so many orders of magnitude that small ones would be lost.
      branches_BS: uint32[B, S]: a bit for each branch that sees the entry, see `attention.branch_mask`; 0 where it is
        empty.
      positions_BS: int32[B, S]: the token's position in its own text.
    """

    k_BHSK: tuple[jax.Array | Int8, ...]
    v_BHSK: tuple[jax.Array | Int8, ...]
    branches_BS: jax.Array
    positions_BS: jax.Array


def sub_ln_inits(config, fan_in: int):
    """Initial values of the projections that sub-LN scales up (value, out, fc1, fc2), and of the others.

    Magneto (arXiv 2210.06423) multiplies by sqrt(ln 2L) for a decoder of L layers. The released code
    (torchscale/architecture/decoder.py) applies it to PyTorch's uniform default, kernel and bias; the paper's
    pseudo-code to Xavier-normal kernels, with biases of zero.

    Returns:
      (scaled, plain): keyword arguments `kernel` and `bias` for `linear`.
    """
    gain = math.sqrt(math.log(2 * config.layers))
    if config.init == "torchscale":
        scaled = uniform(gain * fan_in**-0.5)
        return dict(kernel=scaled, bias=scaled), {}
    xavier = partial(jax.nn.initializers.variance_scaling, mode="fan_avg", distribution="normal")
    zeros = jax.nn.initializers.zeros
    return dict(kernel=xavier(gain**2), bias=zeros), dict(kernel=xavier(1.0), bias=zeros)


class DecoderLayer(nnx.Module):
    def __init__(self, config, rngs, dtype):
        width, ffn = config.width, config.ffn
        scaled, plain = sub_ln_inits(config, width)
        inits = dict(query=plain, key=plain, value=scaled, out=scaled)
        self.attention_norm = layer_norm(width, rngs, dtype)
        self.attention = Attention(width, config.heads, rngs, dtype, inner_norm=True, inits=inits)
        self.ffn_norm = layer_norm(width, rngs, dtype)
        self.fc1 = linear(width, ffn, rngs, dtype, **scaled)
        self.ffn_inner_norm = layer_norm(ffn, rngs, dtype)
        self.fc2 = linear(ffn, width, rngs, dtype, **sub_ln_inits(config, ffn)[0])

    def feed_forward(self, x_BTD):
        return self.fc2(self.ffn_inner_norm(gelu(self.fc1(self.ffn_norm(x_BTD)))))


class Decoder(nnx.Module):
    """A stack of sub-LN layers and a final LayerNorm; embeddings and the output head belong to `Kosmos`.

    Args:
      config: config.model.text.
      rngs: of the initial values.
      dtype: of the arithmetic.
      constrain, attention: see `Kosmos`.
    """

    def __init__(self, config, rngs, dtype, constrain=unpinned, attention=packed_attention):
        self.config = config
        self.dtype = dtype
        self.constrain = constrain
        self.attention = attention
        # What inference may ask for: a cache in eight bits; another attention of one token, see
        # kosmos_jax.parallel.attention.
        self.int8_cache, self.token_attention = False, None
        self.layers = stack(lambda rngs: DecoderLayer(config, rngs, dtype), config.layers, rngs)
        self.final_norm = layer_norm(config.width, rngs, dtype)

    def rotated(self, layer, x_BTD, positions_BT):
        """Queries, keys and values, float[B, T, H, K]; the first two rotated when the config asks for xPos.

        Args:
          layer: a `DecoderLayer`.
          x_BTD: what it reads.
          positions_BT: int[B, T], within each document.
        """
        q, k, v = layer.attention.project(layer.attention_norm(x_BTD))
        if self.config.positions == "sinusoidal":
            return q, k, v
        return *xpos(q, k, positions_BT, scale_keys=not self.int8_cache), v

    def __call__(self, x_BTD, segments_BT, positions_BT, *, key=None, remat="none", unroll=1):
        """Reads complete rows at once: training, and scoring of given texts.

        Args:
          x_BTD: float[B, T, D], embedded tokens.
          segments_BT: int32[B, T], which document a token belongs to; 0 is padding.
          positions_BT: int32[B, T], 0 for a document's first token.
          key: dropout key, or None.
          remat, unroll: see `scan_layers`.

        Returns:
          float[B, T, D], after the final LayerNorm.
        """
        config = self.config

        def call(layer, x_BTD, key):
            weights_key, attention_key, ffn_key = split_key(key, 3)
            q, k, v = self.rotated(layer, x_BTD, positions_BT)
            heads_BTHK = self.attention(
                q, k, v, segments_BT, positions_BT, dropout_rate=config.attention_dropout, key=weights_key
            )
            x_BTD = x_BTD + dropout(layer.attention.output(heads_BTHK), config.dropout, attention_key)
            x_BTD = x_BTD + dropout(layer.feed_forward(x_BTD), config.dropout, ffn_key)
            return self.constrain(x_BTD, "act_btd")

        return self.final_norm(scan_layers(self.layers, x_BTD, key=key, remat=remat, unroll=unroll, call=call))

    def empty_cache(self, rows: int, entries: int) -> Cache:
        """A cache of `rows` rows of `entries` entries each, nothing read yet."""
        heads = self.config.heads
        shape = (rows, heads, entries, self.config.width // heads)

        def empty():
            if self.int8_cache:
                return Int8(jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:3], 1), jnp.float32))
            return jnp.zeros(shape, self.dtype)

        k_BHSK, v_BHSK = (tuple(empty() for _ in range(self.config.layers)) for _ in range(2))
        return Cache(k_BHSK, v_BHSK, *(jnp.zeros((rows, entries), dtype) for dtype in (jnp.uint32, jnp.int32)))

    def extend(self, x_BTD, branches_BT, positions_BT, cache: Cache, starts_B):
        """Reads T more tokens after what the cache holds: a piece of a prompt, or a generated token of each branch.

        Args:
          x_BTD: float[B, T, D].
          branches_BT: uint32[B, T]: the bit of the branch that a token belongs to; all bits for a token that all
            branches share, 0 for padding.
          positions_BT: int32[B, T]: every text counts its own tokens, so rows of different length need no alignment.
          cache: what was read before.
          starts_B: int32[B], the entry that takes the first of the T tokens; the others follow it.

        Returns:
          (float[B, T, D] after the final LayerNorm, the cache with the T tokens in it).
        """

        (B, T, _), S = x_BTD.shape, cache.positions_BS.shape[1]
        entries_BT = jnp.minimum(starts_B, S - T)[:, None] + jnp.arange(T)

        def write(old, new_BT):
            """Of an array [B, S] or [B, H, S, K], the new entries [B, T] or [B, T, H, K]."""
            if B == 1:
                new, axis = (new_BT, 1) if old.ndim == 2 else (new_BT.swapaxes(1, 2), 2)
                return jax.lax.dynamic_update_slice_in_dim(old, new, starts_B[0], axis)
            # XLA for TPU makes a loop over rows of several updates of slices, and one operation of this.
            at = old.at[jnp.arange(B)[:, None], *(slice(None),) * (old.ndim // 4), entries_BT]
            return at.set(new_BT, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)

        def write_heads(old_BHSK, new_BTHK):
            new_BTHK = to_int8(new_BTHK, axis=-1) if self.int8_cache else new_BTHK
            return jax.tree.map(write, old_BHSK, new_BTHK)

        def read(x_BHSK, scales_BSK=None):
            if self.int8_cache:
                scale = x_BHSK.scale if scales_BSK is None else x_BHSK.scale * scales_BSK[:, None]
                x_BHSK = (x_BHSK.values * scale).astype(self.dtype)
            return x_BHSK.swapaxes(1, 2)

        branches_BS = write(cache.branches_BS, branches_BT)
        positions_BS = write(cache.positions_BS, positions_BT)
        mask_BTS = branch_mask(branches_BT, branches_BS, positions_BT, positions_BS)
        scaled_later = self.int8_cache and self.config.positions != "sinusoidal"
        scales_BSK = key_scales(positions_BS, self.config.width // self.config.heads) if scaled_later else None
        layers = self.layers if isinstance(self.layers, nnx.List) else unstack(self.layers)
        keys, values = [], []
        for layer, k_BHSK, v_BHSK in zip(layers, cache.k_BHSK, cache.v_BHSK, strict=True):
            q_BTHK, k_BTHK, v_BTHK = self.rotated(layer, x_BTD, positions_BT)
            keys.append(write_heads(k_BHSK, k_BTHK))
            values.append(write_heads(v_BHSK, v_BTHK))
            if T == 1 and self.token_attention is not None:  # of one branch, which sees all that comes before it
                heads_BTHK = self.token_attention(q_BTHK, keys[-1], values[-1], starts_B + 1)
            else:
                heads_BTHK = attend(q_BTHK, read(keys[-1], scales_BSK), read(values[-1]), mask_BTS)
            x_BTD = x_BTD + layer.attention.output(heads_BTHK)
            x_BTD = x_BTD + layer.feed_forward(x_BTD)
        return self.final_norm(x_BTD), Cache(tuple(keys), tuple(values), branches_BS, positions_BS)
