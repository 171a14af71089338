"""Generation on the device: a prompt is read once, then one loop writes tokens until all rows have ended.

The functions here are compiled. Weights come as arguments, never as constants, so that a program is compiled once for
a shape and new weights cost nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kosmos_jax.inference.sampling import most_likely, sample
from kosmos_jax.model.decoder import Cache
from kosmos_jax.model.layers import unstack


class Rules(NamedTuple):
    """How tokens are chosen; nothing here changes the compiled program.

    Attributes:
      allowed_V: bool[V], tokens that may be generated at all.
      eos, pad: int32[], the token that ends a row, and what fills it after that.
      temperature, top_k, top_p: see `sampling.sample`.
      seed: uint32[2], the high and the low half of an int64, and places_B: int32[B], the number of each row's prompt:
        what is sampled follows from the two.
    """

    allowed_V: jax.Array
    eos: int
    pad: int
    temperature: float
    top_k: int
    top_p: float
    seed: jax.Array
    places_B: jax.Array


class State(NamedTuple):
    """Rows in the middle of generation.

    Attributes:
      tokens_BG: int32[B, G], what was generated; `pad` where nothing is yet or after a row's end.
      step: int32[], tokens generated so far, at least 1.
      ended_B: bool[B].
      lengths_B: int32[B], tokens of the prompts: the position of a row's first generated token.
      cache: what was read, of T + G slots: the prompts in the first T, all but the newest token after them.
    """

    tokens_BG: jax.Array
    step: jax.Array
    ended_B: jax.Array
    lengths_B: jax.Array
    cache: Cache


def for_generation(model):
    """The model as generation wants it: layers apart, matrices in the dtype of the arithmetic."""

    def lower(path, parameter):
        return parameter.astype(model.dtype) if path[-1] in ("kernel", "embedding") else parameter

    graph, params = nnx.split(model)
    model = nnx.merge(graph, nnx.map_state(lower, params))
    model.decoder.layers = unstack(model.decoder.layers)
    return model


def prefill(graph, weights, batch, room: int):
    """Reads prompts.

    Args:
      graph, weights: the model, see `for_generation`.
      batch: prompts.Batch.
      room: slots to leave in the cache for tokens to come.

    Returns:
      (float32[B, V], the scores of the first new token; Cache).
    """
    hidden_BTD, cache = read(graph, weights, batch, room)
    return nnx.merge(graph, weights).logits(hidden_BTD[:, -1]), cache


def read(graph, weights, batch, room: int = 0):
    """As `prefill`, with the hidden state of every token, float[B, T, D].

    Args:
      graph, weights, batch, room: see `prefill`.
    """
    model = nnx.merge(graph, weights)
    x_BTD = model.embed(batch.tokens_BT, batch.slots_BT, model.perceive(batch.media), batch.positions_BT)
    B, T = batch.tokens_BT.shape
    cache = model.decoder.empty_cache(B, T + room)
    return model.decoder.extend(x_BTD, batch.segments_BT, batch.positions_BT, cache, 0)


def score(graph, weights, batch, targets_BT):
    """Log-probabilities of given tokens.

    Args:
      targets_BT: int32[B, T], the token that follows each token; -1 where nobody asks.

    Returns:
      float32[B]: the sum over the asked-for tokens of each row.
    """
    hidden_BTD, _ = read(graph, weights, batch)
    model = nnx.merge(graph, weights)

    def score_row(row):
        hidden_TD, targets_T = row
        log_probabilities_TV = jax.nn.log_softmax(model.logits(hidden_TD))
        picked_T = jnp.take_along_axis(log_probabilities_TV, jnp.maximum(targets_T, 0)[:, None], axis=-1)[:, 0]
        return jnp.where(targets_T >= 0, picked_T, 0.0).sum()

    # Row by row: [B, T, V] would not fit for a real vocabulary.
    return jax.lax.map(score_row, (hidden_BTD, targets_BT))


def extend_by_token(model, tokens_B, positions_B, cache, slot):
    """Reads one more token in every row.

    Args:
      model: see `for_generation`.
      tokens_B, positions_B: int32[B], the token of each row and where it stands.
      cache: what was read before.
      slot: int32[], where the cache takes the token.

    Returns:
      (float32[B, V], the scores of the token after it; Cache).
    """
    x_B1D = model.embed(tokens_B[:, None], None, None, positions_B[:, None])
    ones_B1 = jnp.ones_like(tokens_B)[:, None]
    hidden_B1D, cache = model.decoder.extend(x_B1D, ones_B1, positions_B[:, None], cache, slot)
    return model.logits(hidden_B1D[:, 0]), cache


def choose(logits_BV, rules: Rules, step, greedy: bool):
    """int32[B]: the token number `step` of each row.

    Args:
      logits_BV: float32[B, V].
      rules: how tokens are chosen.
      step: int32[], tokens generated before.
      greedy: whether the most likely one is taken.
    """
    logits_BV = jnp.where(rules.allowed_V, logits_BV, -jnp.inf)
    if greedy:
        return most_likely(logits_BV)
    # As jax.random.key has it for an int64, which JAX holds only when all its integers are as wide.
    key = jax.random.wrap_key_data(rules.seed, impl="threefry2x32")
    step_key = jax.random.fold_in(key, step)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(step_key, rules.places_B)
    return sample(logits_BV, keys_B, rules.temperature, rules.top_k, rules.top_p)


def begin(logits_BV, cache, lengths_B, rules: Rules, room: int, greedy: bool) -> State:
    """The state after the first new token. Rows without a prompt (lengths 0) have ended already.

    Args:
      logits_BV, cache: of `prefill`.
      lengths_B: int32[B], tokens of the prompts.
      rules, greedy: see `choose`.
      room: tokens that fit in the state.
    """
    tokens_B = jnp.where(lengths_B > 0, choose(logits_BV, rules, 0, greedy), rules.pad)
    tokens_BG = jnp.full((len(tokens_B), room), rules.pad, jnp.int32).at[:, 0].set(tokens_B)
    ended_B = (lengths_B == 0) | (tokens_B == rules.eos)
    return State(tokens_BG, jnp.int32(1), ended_B, lengths_B, cache)


def advance(graph, weights, state: State, rules: Rules, limit, greedy: bool) -> State:
    """Generates until every row has `limit` tokens or has ended.

    Args:
      graph, weights: the model, see `for_generation`.
      state: of `begin`, or of the call before.
      rules, greedy: see `choose`.
      limit: int32[], tokens in all.
    """
    model = nnx.merge(graph, weights)
    first_slot = state.cache.segments_BS.shape[1] - state.tokens_BG.shape[1]

    def body(state: State):
        step = state.step
        last_B = jax.lax.dynamic_index_in_dim(state.tokens_BG, step - 1, axis=1, keepdims=False)
        positions_B = state.lengths_B + step - 1
        logits_BV, cache = extend_by_token(model, last_B, positions_B, state.cache, first_slot + step - 1)
        tokens_B = jnp.where(state.ended_B, rules.pad, choose(logits_BV, rules, step, greedy))
        tokens_BG = jax.lax.dynamic_update_index_in_dim(state.tokens_BG, tokens_B, step, axis=1)
        return State(tokens_BG, step + 1, state.ended_B | (tokens_B == rules.eos), state.lengths_B, cache)

    return jax.lax.while_loop(lambda state: (state.step < limit) & ~state.ended_B.all(), body, state)
