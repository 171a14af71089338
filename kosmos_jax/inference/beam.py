"""Beam search on the device.

A hypothesis is a sequence of new tokens that ends with </s>, or that has all the tokens it may have. Its score is

    sum of log-probabilities / (number of new tokens, </s> included) ^ length_penalty

and the search returns the best one that the beams met. It ends for a row when no beam can overtake the best hypothesis
any more, so ending early never changes a result (what transformers calls early_stopping="never").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kosmos_jax.inference.decoding import Rules, extend_by_token
from kosmos_jax.model.decoder import Cache


class Beams(NamedTuple):
    """The search in the middle; W is the number of beams.

    Attributes:
      tokens_BWG: int32[B, W, G], new tokens of the open hypotheses.
      sums_BW: float32[B, W], their log-probabilities, most likely first; -inf for a beam that is not in use yet.
      step: int32[], tokens each of them has.
      best_BG: int32[B, G], the best ended hypothesis, </s> at its end.
      best_B: float32[B], its score, -inf while there is none.
      cache: of B * W rows.
    """

    tokens_BWG: jax.Array
    sums_BW: jax.Array
    step: jax.Array
    best_BG: jax.Array
    best_B: jax.Array
    cache: Cache


def expand(beams: Beams, logits_BWV, rules: Rules, length_penalty) -> Beams:
    """Every open hypothesis by every token: those that end compete for `best`, the W most likely others continue.

    Args:
      beams: the state before.
      logits_BWV: float32[B, W, V], the scores of the next token of each beam.
      rules: decoding.Rules.
      length_penalty: exponent of the length that divides a score.
    """
    B, W, V = logits_BWV.shape
    step = beams.step
    # Of all tokens, also of those not allowed: a score is what the model gives the text.
    allowed_BWV = jnp.where(rules.allowed_V, jax.nn.log_softmax(logits_BWV), -jnp.inf)
    sums_BWV = beams.sums_BW[..., None] + allowed_BWV

    ending_BW = sums_BWV[..., rules.eos] / (step + 1.0) ** length_penalty
    w_B = jnp.argmax(ending_BW, axis=1)
    score_B = jnp.max(ending_BW, axis=1)
    ended_BG = jnp.take_along_axis(beams.tokens_BWG, w_B[:, None, None], axis=1)[:, 0].at[:, step].set(rules.eos)
    better_B = score_B > beams.best_B

    open_BWV = sums_BWV.at[..., rules.eos].set(-jnp.inf)
    sums_BW, candidates_BW = jax.lax.top_k(open_BWV.reshape(B, W * V), W)
    parents_BW, tokens_BW = candidates_BW // V, candidates_BW % V
    tokens_BWG = jnp.take_along_axis(beams.tokens_BWG, parents_BW[..., None], axis=1).at[:, :, step].set(tokens_BW)
    rows = (jnp.arange(B)[:, None] * W + parents_BW).reshape(-1)
    return Beams(
        tokens_BWG=tokens_BWG,
        sums_BW=sums_BW,
        step=step + 1,
        best_BG=jnp.where(better_B[:, None], ended_BG, beams.best_BG),
        best_B=jnp.where(better_B, score_B, beams.best_B),
        cache=jax.tree.map(lambda x: jnp.take(x, rows, axis=0), beams.cache),
    )


def attainable(beams: Beams, limit, length_penalty):
    """float32[B]: a bound on the score of whatever a row's beams may become; sums only fall, lengths only grow.

    Args:
      beams: the state.
      limit: tokens at most.
      length_penalty: see `expand`.
    """
    most_likely_B = beams.sums_BW[:, 0]
    shortest, longest = (beams.step + 1.0) ** length_penalty, limit.astype(jnp.float32) ** length_penalty
    return jnp.maximum(most_likely_B / shortest, most_likely_B / longest)


def beam_search(graph, weights, logits_BV, cache, lengths_B, rules: Rules, limit, length_penalty, width, room):
    """Searches the continuations of prompts that were read.

    Args:
      graph, weights: the model, see `decoding.for_generation`.
      logits_BV, cache: from `decoding.prefill`.
      lengths_B: int32[B], tokens of the prompts, 0 for a row that is only filling.
      rules: `allowed_V`, `eos` and `pad` matter here.
      limit: int32[], new tokens at most.
      length_penalty: float32[].
      width: W.
      room: G, the slots that the cache has left.

    Returns:
      int32[B, G]: the best hypothesis of each row, `pad` after its end.
    """
    model = nnx.merge(graph, weights)
    B, first_slot = len(lengths_B), cache.segments_BS.shape[1] - room
    beams = Beams(
        tokens_BWG=jnp.full((B, width, room), rules.pad, jnp.int32),
        sums_BW=jnp.full((B, width), -jnp.inf).at[:, 0].set(0.0),
        step=jnp.int32(0),
        best_BG=jnp.full((B, room), rules.pad, jnp.int32),
        best_B=jnp.where(lengths_B > 0, -jnp.inf, jnp.inf),
        cache=jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), cache),
    )
    beams = expand(beams, jnp.repeat(logits_BV[:, None], width, axis=1), rules, length_penalty)

    def going_on(beams):
        return (beams.step < limit) & (attainable(beams, limit, length_penalty) > beams.best_B).any()

    def body(beams):
        last = jax.lax.dynamic_index_in_dim(beams.tokens_BWG, beams.step - 1, axis=2, keepdims=False).reshape(-1)
        positions = jnp.repeat(lengths_B, width) + beams.step - 1
        logits, cache = extend_by_token(model, last, positions, beams.cache, first_slot + beams.step - 1)
        return expand(beams._replace(cache=cache), logits.reshape(B, width, -1), rules, length_penalty)

    beams = jax.lax.while_loop(going_on, body, beams)
    unended_B = beams.sums_BW[:, 0] / limit.astype(jnp.float32) ** length_penalty
    return jnp.where((beams.best_B >= unended_B)[:, None], beams.best_BG, beams.tokens_BWG[:, 0])
