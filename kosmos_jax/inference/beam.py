"""Beam search over the branches of slots.

A hypothesis is a sequence of new tokens that ends with </s>, or that has all the tokens it may have. Its score is

    sum of log-probabilities / (number of new tokens, </s> included) ^ length_penalty

and the search returns the best ones that the beams met. It ends for a slot when no beam can overtake the worst of those
that were asked for any more, so ending early never changes a result (what transformers calls early_stopping="never").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Beams(NamedTuple):
    """The searches of B slots.

    Attributes:
      sums_BW: float32[B, W], log-probabilities of the open hypotheses, most likely first; -inf for one not in use yet.
      best_BWS: int32[B, W, S], the best ended hypotheses after their prompt, </s> at the end, -1 beyond.
      scores_BW: float32[B, W], theirs, best first; -inf for a place that is still empty.
    """

    sums_BW: jax.Array
    best_BWS: jax.Array
    scores_BW: jax.Array


class Best(NamedTuple):
    """The results of one search: texts int32[W, S] with their prompt, and scores float32[W]."""

    texts_WS: jax.Array
    scores_W: jax.Array


def best(beams: Beams, b) -> Best:
    """Those of slot `b`."""
    return Best(beams.best_BWS[b], beams.scores_BW[b])


def empty(shape) -> Beams:
    """Of B slots of W branches and S entries, by shape = (B, W, S)."""
    sums_BW, scores_BW = (jnp.full(shape[:2], -jnp.inf, jnp.float32) for _ in range(2))
    return Beams(sums_BW, jnp.full(shape, -1, jnp.int32), scores_BW)


def begin(beams: Beams, b) -> Beams:
    """A new search in slot `b`: all branches hold the prompt, and one of them is enough."""
    W = beams.sums_BW.shape[1]
    return Beams(
        beams.sums_BW.at[b].set(jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf)),
        beams.best_BWS.at[b].set(-1),
        beams.scores_BW.at[b].set(-jnp.inf),
    )


def expand(beams: Beams, logprobs_BWV, slots, rules, eos: int):
    """Every open hypothesis by every token: those that end compete for the best, the most likely others continue.

    Args:
      beams: the state before.
      logprobs_BWV: float32[B, W, V], of the next token of each branch; -inf for what must not come.
      slots, rules: see slots.py.
      eos: the id of </s>.

    Returns:
      (Beams, texts int32[B, W, S] without the new token, parents int32[B, W], new tokens int32[B, W]).
    """
    B, W, V = logprobs_BWV.shape
    count_B = slots.lengths_B - slots.prompts_B + 1
    divisor_B1 = (count_B.astype(jnp.float32) ** rules.length_penalty_B)[:, None]
    here_BWS = jnp.arange(slots.ids_BWS.shape[2]) == slots.lengths_B[:, None, None]
    sums_BWV = beams.sums_BW[..., None] + logprobs_BWV
    ending_BW = sums_BWV[..., eos] / divisor_B1

    open_BWV = sums_BWV.at[..., eos].set(-jnp.inf)
    sums_BW, candidates_BW = jax.lax.top_k(open_BWV.reshape(B, W * V), W)
    sums_BW = jnp.where(jnp.arange(W) < rules.beams_B[:, None], sums_BW, -jnp.inf)
    parents_BW, tokens_BW = candidates_BW // V, candidates_BW % V
    texts_BWS = jnp.take_along_axis(slots.ids_BWS, parents_BW[..., None], axis=1)

    # With its last token an open hypothesis is a result too.
    last_B1 = (count_B >= rules.limit_B)[:, None]
    scores_BX = jnp.concatenate([beams.scores_BW, ending_BW, jnp.where(last_B1, sums_BW / divisor_B1, -jnp.inf)], 1)
    ended_BWS = jnp.where(here_BWS, eos, slots.ids_BWS)
    hypotheses_BXS = jnp.concatenate(
        [beams.best_BWS, ended_BWS, jnp.where(here_BWS, tokens_BW[..., None], texts_BWS)], 1
    )
    scores_BW, places_BW = jax.lax.top_k(scores_BX, W)
    best_BWS = jnp.take_along_axis(hypotheses_BXS, places_BW[..., None], axis=1)
    return Beams(sums_BW, best_BWS, scores_BW), texts_BWS, parents_BW, tokens_BW


def inherited(branches_BS, parents_BW):
    """uint32[B, S]: who sees each entry once branch w has taken over the text of branch parents[w].

    Args:
      branches_BS: uint32[B, S], who saw it before.
      parents_BW: int32[B, W].
    """
    seen_BWS = branches_BS[:, None] >> parents_BW[..., None].astype(jnp.uint32) & 1
    bits_W1 = jnp.arange(parents_BW.shape[1], dtype=jnp.uint32)[:, None]
    # What all branches see, they see whatever the parents; bits beyond W are of nobody.
    return (seen_BWS << bits_W1).sum(axis=1, dtype=jnp.uint32)


def open_branches(beams: Beams, rules, count_B):
    """bool[B, W]: the branches of searches that may still find something better.

    Sums only fall and lengths only grow: what a slot's hypotheses may become is bounded by the most likely one.

    Args:
      beams: the state.
      rules: see slots.py.
      count_B: int32[B], tokens of every open hypothesis.
    """
    most_likely_B, penalty_B = beams.sums_BW[:, 0], rules.length_penalty_B
    shortest_B, longest_B = ((n.astype(jnp.float32)) ** penalty_B for n in (count_B + 1, rules.limit_B))
    attainable_B = jnp.maximum(most_likely_B / shortest_B, most_likely_B / longest_B)
    W = beams.sums_BW.shape[1]
    worst_B1 = jnp.take_along_axis(beams.scores_BW, jnp.clip(rules.results_B - 1, 0, W - 1)[:, None], axis=1)
    searching_B = (attainable_B > worst_B1[:, 0]) & (count_B < rules.limit_B)
    return searching_B[:, None] & (jnp.arange(W) < rules.beams_B[:, None])
