"""Reading: media to vectors, prompts to keys and values in pieces of one size, given continuations to their scores.

A prompt is read into a cache of one row, its page, C tokens at a time from entry 0 on, and copied from there into a
slot or kept in blocks of C entries for the next prompt that begins so. The functions here are compiled.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kosmos_jax.inference.options import MOST_TOP_LOGPROBS
from kosmos_jax.model.decoder import Cache

# The bits of a token that every branch sees.
ALL_BRANCHES = 2**32 - 1


class Piece(NamedTuple):
    """C tokens to read, side by side in the cache; the arguments of `Decoder.extend` for one row.

    Attributes:
      tokens_C: int32[C].
      slots_C: int32[C], rows of the table of vectors; -1 for text.
      branches_C: uint32[C], 0 for padding.
      positions_C: int32[C].
    """

    tokens_C: jax.Array
    slots_C: jax.Array
    branches_C: jax.Array
    positions_C: jax.Array


class Scored(NamedTuple):
    """What the model thinks of the token that follows each one of a piece.

    Attributes:
      logprobs_C: float32[C], of the given one.
      greedy_C: bool[C], whether it is the most likely one.
      top_ids_CE, top_logprobs_CE: the most likely ones, if asked for.
    """

    logprobs_C: jax.Array
    greedy_C: jax.Array
    top_ids_CE: jax.Array
    top_logprobs_CE: jax.Array


def perceive(graph, weights, table_MD, name: str, items, starts_N):
    """The table with the vectors of items of one modality.

    Args:
      graph, weights: the model, see weights.py.
      table_MD: float[M, D], vectors of items.
      name: the modality's.
      items: [N, *shape].
      starts_N: int32[N], the rows of the table where each item's vectors begin.
    """
    model = nnx.merge(graph, weights)
    vectors_NQD = getattr(model, name)(items)
    for n in range(len(items)):
        table_MD = jax.lax.dynamic_update_slice_in_dim(table_MD, vectors_NQD[n].astype(table_MD.dtype), starts_N[n], 0)
    return table_MD


def read(graph, weights, table_MD, page: Cache, piece: Piece, start) -> Cache:
    """A page with a piece of a prompt, or of continuations, read into it.

    Args:
      graph, weights: the model, see weights.py.
      table_MD: vectors of items, see `perceive`.
      page: a cache of one row.
      piece: what to read.
      start: int32[], the entry of its first token.
    """
    return _extend(nnx.merge(graph, weights), table_MD, page, piece, start)[1]


def score(graph, weights, table_MD, page: Cache, piece: Piece, start, targets_C, tells) -> tuple[Cache, Scored]:
    """As `read`, and how likely a given token is after each.

    Args:
      graph, weights, table_MD, page, piece, start: see `read`.
      targets_C: int32[C], the tokens that follow.
      tells: bool[], whether the most likely ones are wanted.
    """
    model = nnx.merge(graph, weights)
    hidden_CD, page = _extend(model, table_MD, page, piece, start)
    logprobs_CV = jax.nn.log_softmax(model.logits(hidden_CD))
    top_logprobs_CE, top_ids_CE = most_likely_few(logprobs_CV, tells)
    greedy_C = jnp.argmax(logprobs_CV, axis=-1) == targets_C
    return page, Scored(picked(logprobs_CV, targets_C), greedy_C, top_ids_CE, top_logprobs_CE)


def _extend(model, table_MD, page, piece, start):
    row = jax.tree.map(lambda x_C: x_C[None], piece)
    page = _cleared(page, start)
    x_1CD = model.embed(row.tokens_C, row.slots_C, table_MD, row.positions_C)
    hidden_1CD, page = model.decoder.extend(x_1CD, row.branches_C, row.positions_C, page, start[None])
    return hidden_1CD[0], page


def _cleared(page: Cache, start) -> Cache:
    """The page without what another prompt, or other continuations, left from entry `start` on."""
    before_S = jnp.arange(page.branches_BS.shape[1]) < start
    return page._replace(branches_BS=jnp.where(before_S, page.branches_BS, 0))


def picked(logprobs, ids):
    """float[..., V] at int[...]: the entries of given ids."""
    return jnp.take_along_axis(logprobs, ids[..., None], axis=-1)[..., 0]


def most_likely_few(logprobs, tells):
    """The log-probabilities and ids of the E most likely tokens; zeros unless `tells`.

    Args:
      logprobs: float32[..., V].
      tells: bool[].

    Returns:
      (float32[..., E], int32[..., E]).
    """
    E = MOST_TOP_LOGPROBS
    nothing = jnp.zeros((*logprobs.shape[:-1], E))
    return jax.lax.cond(tells, lambda: tuple(jax.lax.top_k(logprobs, E)), lambda: (nothing, nothing.astype(jnp.int32)))


def keep(blocks: Cache, page: Cache, r, start) -> Cache:
    """Blocks with entries of a page copied to block `r`.

    Args:
      blocks: a cache of R rows of C entries, each a piece of some prompt.
      page: where a piece was read.
      r: int32[].
      start: int32[], the piece's first entry.
    """
    size = blocks.branches_BS.shape[1]

    def put(old, x):
        piece = jax.lax.dynamic_slice_in_dim(x, start, size, axis=_entries(x))
        return jax.lax.dynamic_update_slice_in_dim(old, piece, r, axis=0)

    return jax.tree.map(put, blocks, page)


def reuse(blocks: Cache, page: Cache, r, start) -> Cache:
    """A page with block `r` in the place of the piece that begins at entry `start`.

    Args:
      blocks, r, start: see `keep`.
      page: what was read before the piece.
    """

    def put(old, x):
        piece = jax.lax.dynamic_slice_in_dim(x, r, 1, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(old, piece, start, axis=_entries(x))

    return jax.tree.map(put, _cleared(page, start), blocks)


def _entries(x) -> int:
    """The dimension of entries in an array of a cache: [B, H, S, K] or [B, S]."""
    return 2 if x.ndim == 4 else 1
