"""The choice of the next token: arithmetic on logits, every option an array with a value for each row.

N is the number of rows: every branch of every slot. A row whose options leave something out (no penalty, no sampling)
has the same bits as if no other row had asked for it.
"""

import jax
import jax.numpy as jnp

# Devices round what is smaller to zero.
TINY = jnp.finfo(jnp.float32).tiny
# The longest n-gram that `repeat_penalties` can forbid to repeat.
LONGEST_NGRAM = 8


def most_likely(logits_NV):
    """float32[N, V] -> int32[N]: greedy decoding."""
    return jnp.argmax(logits_NV, axis=-1).astype(jnp.int32)


def repeat_penalties(logits_NV, ids_NS, lengths_N, repetition_N, ngram_N):
    """Logits in which what stands in the text already is less likely, or cannot come.

    Args:
      logits_NV: float32[N, V].
      ids_NS: int32[N, S], the text so far, prompt and generated; -1 in the slots of media and beyond the end.
      lengths_N: int32[N], of the text.
      repetition_N: float32[N], divides positive logits of tokens in the text and multiplies negative ones (CTRL, arXiv
        1909.05858, as transformers has it); 1 for none.
      ngram_N: int32[N], length of the n-grams of which none may occur twice, at most `LONGEST_NGRAM`; 0 for none.

    Returns:
      float32[N, V].
    """
    N, V = logits_NV.shape
    rows_N1, places_S = jnp.arange(N)[:, None], jnp.arange(ids_NS.shape[1])
    in_text_NS = jnp.take_along_axis(logits_NV, jnp.maximum(ids_NS, 0), axis=1)
    factor_N1 = repetition_N[:, None]
    penalized_NS = jnp.where(in_text_NS > 0, in_text_NS / factor_N1, in_text_NS * factor_N1)
    logits_NV = logits_NV.at[rows_N1, jnp.where(ids_NS >= 0, ids_NS, V)].set(penalized_NS, mode="drop")

    # A token is forbidden if it once followed the same n - 1 tokens that the text ends with.
    follows_NS = (places_S >= ngram_N[:, None] - 1) & (places_S < lengths_N[:, None]) & (ngram_N[:, None] > 0)
    for back in range(1, LONGEST_NGRAM):
        ending_N1 = jnp.take_along_axis(ids_NS, jnp.maximum(lengths_N[:, None] - back, 0), axis=1)
        before_NS = jnp.roll(ids_NS, back, axis=1)
        follows_NS &= (back >= ngram_N[:, None]) | ((before_NS == ending_N1) & (before_NS >= 0))
    return logits_NV.at[rows_N1, jnp.where(follows_NS & (ids_NS >= 0), ids_NS, V)].set(-jnp.inf, mode="drop")


def truncate(logits_NV, top_k_N, top_p_N, min_p_N):
    """-inf for every token outside the top k, outside the nucleus of what is left, or below a share of the likeliest.

    The nucleus (arXiv 1904.09751) is the smallest set of most likely tokens that holds probability p; its least likely
    token is the one that reaches p. As in transformers, top-k comes first, and tokens of equal rank stay together.

    Args:
      logits_NV: float32[N, V], already divided by the temperature.
      top_k_N: int32[N], 0 for no limit.
      top_p_N: float32[N] in (0, 1].
      min_p_N: float32[N] in [0, 1], of the most likely token's probability (arXiv 2407.01082); 0 for no limit.

    Returns:
      float32[N, V].
    """
    top_k_N1, top_p_N1, min_p_N1 = top_k_N[:, None], top_p_N[:, None], min_p_N[:, None]
    sorted_NV = jnp.sort(logits_NV, axis=-1, descending=True)
    rank_V = jnp.arange(logits_NV.shape[-1])
    sorted_NV = jnp.where((rank_V < top_k_N1) | (top_k_N1 <= 0), sorted_NV, -jnp.inf)
    probabilities_NV = jax.nn.softmax(sorted_NV, axis=-1)
    before_NV = jnp.cumsum(probabilities_NV, axis=-1) - probabilities_NV
    # Without a limit, rounding of the sum must not cost the last tokens their place.
    kept_NV = (before_NV < jnp.maximum(top_p_N1, TINY)) | (top_p_N1 >= 1.0)
    kept_NV &= (sorted_NV > -jnp.inf) & (probabilities_NV >= min_p_N1 * probabilities_NV[:, :1])
    least_N1 = jnp.min(jnp.where(kept_NV, sorted_NV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_NV >= least_N1, logits_NV, -jnp.inf)


def sample(logits_NV, keys_N, temperature_N, top_k_N, top_p_N, min_p_N):
    """One token for each row.

    Args:
      logits_NV: float32[N, V]; -inf for what must not come.
      keys_N: random keys [N], one a row, so that what a row samples does not depend on the rows around it.
      temperature_N: float32[N]; 0 for the most likely token.
      top_k_N, top_p_N, min_p_N: see `truncate`; the sort that they need is left out when no row has any.

    Returns:
      int32[N].
    """
    greedy_N = most_likely(logits_NV)
    samples_N = temperature_N > 0
    limited_N = (top_k_N > 0) | (top_p_N < 1) | (min_p_N > 0)

    def draw():
        # Zero for the greatest before the division: however small the temperature, nothing becomes inf or NaN.
        below_NV = logits_NV - jnp.max(logits_NV, axis=-1, keepdims=True)
        warmed_NV = below_NV / jnp.maximum(temperature_N, TINY)[:, None]
        warmed_NV = jnp.where(below_NV > -jnp.inf, warmed_NV, -jnp.inf)  # a compiler may make it -inf * 0
        limited_NV = jax.lax.cond(
            (samples_N & limited_N).any(),
            lambda: truncate(warmed_NV, top_k_N, top_p_N, min_p_N),
            lambda: warmed_NV,
        )
        drawn_N = jax.vmap(jax.random.categorical)(keys_N, limited_NV).astype(jnp.int32)
        return jnp.where(samples_N, drawn_N, greedy_N)

    return jax.lax.cond(samples_N.any(), draw, lambda: greedy_N)
