"""Slots: prompts that were read and their continuations in the making, many side by side on the device.

B slots of S cache entries each; W branches grow from each slot's prompt: its samples or its beams, or one continuation
(W = 1). Slots are independent of each other, and every array has the same shape whatever the slots hold, so that what a
slot gets does not depend on the traffic around it. Nothing of a cache is moved: a branch that takes another's text over
is a change of bits, see `attention.branch_mask`.

V is the vocabulary, filled up as the head is (weights.py).

The functions here are compiled. Weights come as arguments, never as constants, so that a program is compiled once for
a shape and new weights cost nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kosmos_jax.inference import beam
from kosmos_jax.inference.options import MOST_STOP_IDS, MOST_TOP_LOGPROBS
from kosmos_jax.inference.prefill import most_likely_few, picked
from kosmos_jax.inference.sampling import repeat_penalties, sample
from kosmos_jax.model.decoder import Cache


class Rules(NamedTuple):
    """How tokens are chosen, an entry for each slot; see `options.Options`. Nothing here changes the compiled program.

    Attributes:
      bias_BV: float32[B, V], added to logits; -inf for what must not come.
      ends_BE: int32[B, E], tokens that end a branch; -1 fills.
      minimum_B, limit_B: int32[B], new tokens before which no end comes, and at most.
      temperature_B, top_k_B, top_p_B, min_p_B, repetition_B, ngram_B: see sampling.py.
      seed_B2: uint32[B, 2], the high and the low half of an int64, and place_B: int32[B].
      top_B: int32[B], how many of the most likely tokens to tell.
      beams_B: int32[B], the width of a beam search, 0 for independent samples.
      length_penalty_B: float32[B], results_B: int32[B], hypotheses asked for; see beam.py.
    """

    bias_BV: jax.Array
    ends_BE: jax.Array
    minimum_B: jax.Array
    limit_B: jax.Array
    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    repetition_B: jax.Array
    ngram_B: jax.Array
    seed_B2: jax.Array
    place_B: jax.Array
    top_B: jax.Array
    beams_B: jax.Array
    length_penalty_B: jax.Array
    results_B: jax.Array


class Slots(NamedTuple):
    """The texts of B slots, each with W branches of the same length.

    Attributes:
      cache: all tokens but the newest of each branch.
      used_B: int32[B], entries of the cache that are taken.
      prompts_B, lengths_B: int32[B], tokens of the prompt, and of the text so far.
      ids_BWS: int32[B, W, S], the text; -1 in slots of media and beyond the end.
      running_BW: bool[B, W], branches that want more tokens.
      beams: the state of searches, None where W is 1.
    """

    cache: Cache
    used_B: jax.Array
    prompts_B: jax.Array
    lengths_B: jax.Array
    ids_BWS: jax.Array
    running_BW: jax.Array
    beams: beam.Beams | None


class Told(NamedTuple):
    """What a dispatch of K steps tells the host.

    Attributes:
      tokens_KBW: int32[K, B, W], -1 where a branch had no step.
      logprobs_KBW: float32[K, B, W], of those tokens, by the model alone.
      top_ids_KBWE, top_logprobs_KBWE: the most likely tokens; only where a slot's `Rules.top_B` asks.
      running_BW: bool[B, W], as in `Slots`, at the end.
    """

    tokens_KBW: jax.Array
    logprobs_KBW: jax.Array
    top_ids_KBWE: jax.Array
    top_logprobs_KBWE: jax.Array
    running_BW: jax.Array


def free(model, scores: int, rows: int, entries: int, branches: int) -> tuple[Slots, Rules]:
    """B = `rows` slots of S = `entries` with W = `branches` and V = `scores` of each token, and nobody in them."""
    shape_BWS = rows, branches, entries
    slots = Slots(
        cache=model.decoder.empty_cache(rows, entries),
        used_B=jnp.zeros(rows, jnp.int32),
        prompts_B=jnp.zeros(rows, jnp.int32),
        lengths_B=jnp.ones(rows, jnp.int32),
        ids_BWS=jnp.full(shape_BWS, -1, jnp.int32),
        running_BW=jnp.zeros((rows, branches), bool),
        beams=beam.empty(shape_BWS) if branches > 1 else None,
    )
    dtypes = dict.fromkeys(Rules._fields, jnp.int32)
    dtypes |= dict.fromkeys(("bias_BV", "temperature_B", "top_p_B", "min_p_B", "repetition_B"), jnp.float32)
    dtypes |= dict(seed_B2=jnp.uint32, length_penalty_B=jnp.float32)
    widths = dict(bias_BV=(scores,), ends_BE=(1 + MOST_STOP_IDS,), seed_B2=(2,))
    return slots, Rules(**{name: jnp.zeros((rows, *widths.get(name, ())), dtype) for name, dtype in dtypes.items()})


def joined(old, new):
    """Two sets of slots, or of rules, as one."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), old, new)


def admit(slots: Slots, rules: Rules, prompt: Cache, b, ids_S, length, own: Rules) -> tuple[Slots, Rules]:
    """Puts a prompt that was read into a slot.

    Args:
      slots, rules: as they are.
      prompt: a cache of one row: all but the last token of the prompt.
      b: int32[], the slot.
      ids_S: int32[S], the prompt's tokens, -1 in slots of media and beyond the end.
      length: int32[], of the prompt.
      own: the slot's entry of each of `Rules`.
    """
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), b, axis=0)  # noqa: E731
    W = slots.running_BW.shape[1]
    cache = jax.tree.map(put, slots.cache, prompt)
    return Slots(
        cache=cache,
        used_B=slots.used_B.at[b].set(length - 1),
        prompts_B=slots.prompts_B.at[b].set(length),
        lengths_B=slots.lengths_B.at[b].set(length),
        ids_BWS=slots.ids_BWS.at[b].set(ids_S),
        running_BW=slots.running_BW.at[b].set(jnp.arange(W) < jnp.maximum(own.beams_B, own.results_B)),
        beams=None if slots.beams is None else beam.begin(slots.beams, b),
    ), jax.tree.map(lambda old, new: old.at[b].set(new), rules, own)


def rebias(rules: Rules, b, bias_V) -> Rules:
    """The rules with another bias in slot `b`."""
    return rules._replace(bias_BV=rules.bias_BV.at[b].set(bias_V))


def quiet(rules: Rules, active_B) -> Rules:
    """The rules with nothing that costs time in slots that are not active.

    Args:
      rules: those of all slots.
      active_B: bool[B].
    """
    idle = dict(temperature_B=0.0, repetition_B=1.0, ngram_B=0, top_B=0)
    return rules._replace(**{name: jnp.where(active_B, getattr(rules, name), value) for name, value in idle.items()})


def step(model, eos: int, split: Callable, slots: Slots, rules: Rules, active_BW):
    """One token more in every active branch.

    Args:
      model: of `inference_model`.
      eos, split, slots, rules: see `decode`.
      active_BW: bool[B, W].

    Returns:
      (Slots, tokens int32[B, W], log-probabilities float32[B, W, V] of the next token, by the model alone).
    """
    B, W, S = slots.ids_BWS.shape
    bits_W = jnp.uint32(1) << jnp.arange(W, dtype=jnp.uint32)
    newest_BW = jnp.take_along_axis(slots.ids_BWS, slots.lengths_B[:, None, None] - 1, axis=2)[..., 0]
    positions_BW = jnp.broadcast_to(slots.lengths_B[:, None] - 1, (B, W))
    x_BWD = model.embed(jnp.maximum(newest_BW, 0), None, None, positions_BW)
    branches_BW = jnp.where(active_BW, bits_W, 0)
    hidden_BWD, cache = model.decoder.extend(x_BWD, branches_BW, positions_BW, slots.cache, slots.used_B)
    logits_BWV = split(model.logits(hidden_BWD))
    norm_BW = jax.nn.logsumexp(logits_BWV, axis=-1)

    allowed_BWV = split(_ruled(logits_BWV, slots, rules))
    tokens_BW = _sampled(allowed_BWV, slots, rules)
    count_B = slots.lengths_B - slots.prompts_B + 1
    # What may not come is chosen where nothing may, such as where no n-gram may repeat.
    stuck_BW = jnp.isneginf(picked(allowed_BWV, tokens_BW))
    tokens_BW = jnp.where(stuck_BW, -1, tokens_BW)
    ends_BW = (tokens_BW[..., None] == rules.ends_BE[:, None]).any(-1) & ~stuck_BW
    ends_BW |= stuck_BW | (count_B >= rules.limit_B)[:, None]
    running_BW = slots.running_BW & ~(active_BW & ends_BW)
    ids_BWS, beams = slots.ids_BWS, slots.beams
    if W > 1:
        searches_B = active_BW.any(1) & (rules.beams_B > 0)
        scored_BWV = allowed_BWV - norm_BW[..., None]
        expanded, texts_BWS, parents_BW, found_BW = beam.expand(beams, scored_BWV, slots, rules, eos)
        pick = lambda new, old: jnp.where(searches_B.reshape(-1, *[1] * (old.ndim - 1)), new, old)  # noqa: E731
        beams = jax.tree.map(pick, expanded, beams)
        ids_BWS, tokens_BW = pick(texts_BWS, ids_BWS), pick(found_BW, tokens_BW)
        running_BW = pick(beam.open_branches(beams, rules, count_B), running_BW)
        cache = cache._replace(branches_BS=pick(beam.inherited(cache.branches_BS, parents_BW), cache.branches_BS))
    here_BWS = (jnp.arange(S) == slots.lengths_B[:, None, None]) & active_BW[..., None]
    moved_B = active_BW.any(1).astype(jnp.int32)
    return (
        Slots(
            cache=cache,
            used_B=slots.used_B + W * moved_B,
            prompts_B=slots.prompts_B,
            lengths_B=slots.lengths_B + moved_B,
            ids_BWS=jnp.where(here_BWS, tokens_BW[..., None], ids_BWS),
            running_BW=running_BW,
            beams=beams,
        ),
        tokens_BW,
        logits_BWV - norm_BW[..., None],
    )


def _ruled(logits_BWV, slots: Slots, rules: Rules):
    """float32[B, W, V]: logits with penalties and biases, and without an end where it is too early."""
    B, W, V = logits_BWV.shape
    each = lambda x_B: jnp.repeat(x_B, W)  # noqa: E731
    logits_NV, ids_NS = logits_BWV.reshape(B * W, V), slots.ids_BWS.reshape(B * W, -1)
    penalties = each(slots.lengths_B), each(rules.repetition_B), each(rules.ngram_B)
    logits_NV = jax.lax.cond(
        ((rules.repetition_B != 1) | (rules.ngram_B > 0)).any(),
        lambda: repeat_penalties(logits_NV, ids_NS, *penalties),
        lambda: logits_NV,
    )
    early_B = slots.lengths_B - slots.prompts_B < rules.minimum_B
    too_early_BE = jnp.where((rules.ends_BE >= 0) & early_B[:, None], rules.ends_BE, V)
    bias_BV = rules.bias_BV.at[jnp.arange(B)[:, None], too_early_BE].set(-jnp.inf, mode="drop")
    return logits_NV.reshape(B, W, V) + bias_BV[:, None]


def _sampled(logits_BWV, slots: Slots, rules: Rules):
    """int32[B, W]: a token for each branch by its own random key."""
    B, W, V = logits_BWV.shape
    new_B = slots.lengths_B - slots.prompts_B

    def key(seed_2, number, place, branch):
        # As jax.random.key has it for an int64, which JAX holds only when all its integers are as wide.
        key = jax.random.wrap_key_data(seed_2, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, number), place), branch)

    keys_BW = jax.vmap(jax.vmap(key, (None, None, None, 0)), (0, 0, 0, None))(
        rules.seed_B2, new_B, rules.place_B, jnp.arange(W)
    )
    options = rules.temperature_B, rules.top_k_B, rules.top_p_B, rules.min_p_B
    return sample(
        logits_BWV.reshape(B * W, V), keys_BW.reshape(B * W), *(jnp.repeat(option_B, W) for option_B in options)
    ).reshape(B, W)


def decode(
    graph, weights, slots: Slots, rules: Rules, budget_B, hurry, *, eos: int, steps: int, split: Callable
) -> tuple[Slots, Told]:
    """Generates at most K = `steps` tokens in every branch that runs.

    Args:
      graph, weights: the model, see weights.py.
      slots, rules: as they are.
      budget_B: int32[B], tokens at most that a slot gets now; -1 ends its branches.
      hurry: bool[], whether to return as soon as a slot is free, because somebody waits for one.
      eos: the id of </s>.
      steps: K.
      split: pins scores float[B, W, V] to a mesh: what some options need would else bring all of them to every device.
    """
    model = nnx.merge(graph, weights)
    B, W, _ = slots.ids_BWS.shape
    slots = slots._replace(running_BW=slots.running_BW & (budget_B >= 0)[:, None])
    E = MOST_TOP_LOGPROBS
    told = Told(
        tokens_KBW=jnp.full((steps, B, W), -1, jnp.int32),
        logprobs_KBW=jnp.zeros((steps, B, W), jnp.float32),
        top_ids_KBWE=jnp.zeros((steps, B, W, E), jnp.int32),
        top_logprobs_KBWE=jnp.zeros((steps, B, W, E), jnp.float32),
        running_BW=slots.running_BW,
    )

    def active(slots, k):
        return slots.running_BW & (budget_B > k)[:, None]

    def going(carry):
        k, slots, told = carry
        left = told.running_BW.any(1) & ~slots.running_BW.any(1)
        return (k < steps) & active(slots, k).any() & ~(hurry & left.any())

    def body(carry):
        k, slots, told = carry
        active_BW = active(slots, k)
        current = quiet(rules, active_BW.any(1))
        slots, tokens_BW, logprobs_BWV = step(model, eos, split, slots, current, active_BW)
        top_logprobs_BWE, top_ids_BWE = most_likely_few(logprobs_BWV, (current.top_B > 0).any())
        told = told._replace(
            tokens_KBW=told.tokens_KBW.at[k].set(jnp.where(active_BW, tokens_BW, -1)),
            logprobs_KBW=told.logprobs_KBW.at[k].set(picked(logprobs_BWV, tokens_BW)),
            top_ids_KBWE=told.top_ids_KBWE.at[k].set(top_ids_BWE),
            top_logprobs_KBWE=told.top_logprobs_KBWE.at[k].set(top_logprobs_BWE),
        )
        return k + 1, slots, told

    _, slots, told = jax.lax.while_loop(going, body, (jnp.int32(0), slots, told))
    return slots, told._replace(running_BW=slots.running_BW)


def jump(graph, weights, slots: Slots, b, tokens_F, count) -> Slots:
    """Appends known tokens to the text of a slot of one branch, reading all of them at once.

    Args:
      graph, weights, slots: see `decode`.
      b: int32[], the slot; F entries of it are free.
      tokens_F: int32[F].
      count: int32[], how many of them, at least 1.
    """
    model = nnx.merge(graph, weights)
    row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, b, 1, axis=0), slots.cache)
    length, ids_S, places_F = slots.lengths_B[b], slots.ids_BWS[b, 0], jnp.arange(len(tokens_F))
    # The newest token of the text comes first, the last of the known ones is the next to be read.
    unread_F = jnp.concatenate([ids_S[length - 1][None], tokens_F[:-1]])
    positions_F = length - 1 + places_F
    branches_F = jnp.where(places_F < count, jnp.uint32(1), 0)
    x_1FD = model.embed(unread_F[None], None, None, positions_F[None])
    _, row = model.decoder.extend(x_1FD, branches_F[None], positions_F[None], row, slots.used_B[b][None])
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, b, axis=0)  # noqa: E731
    ids_S = ids_S.at[length + places_F].set(jnp.where(places_F < count, tokens_F, -1), mode="drop")
    return slots._replace(
        cache=jax.tree.map(put, slots.cache, row),
        used_B=slots.used_B.at[b].add(count),
        lengths_B=slots.lengths_B.at[b].add(count),
        ids_BWS=slots.ids_BWS.at[b, 0].set(ids_S),
    )
