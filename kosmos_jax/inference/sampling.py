"""The choice of the next token."""

import jax
import jax.numpy as jnp

# Devices round what is smaller to zero.
TINY = jnp.finfo(jnp.float32).tiny


def most_likely(logits_BV):
    """float32[B, V] -> int32[B]: greedy decoding."""
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def truncate(logits_BV, top_k, top_p):
    """-inf for every token outside the top k, and outside the nucleus of what is left.

    The nucleus (arXiv 1904.09751) is the smallest set of most likely tokens that holds probability p; its least likely
    token is the one that reaches p. As in transformers, top-k comes first, and tokens of equal rank stay together.

    Args:
      logits_BV: float32[B, V], already divided by the temperature.
      top_k: int32[], 0 for no limit.
      top_p: float32[] in (0, 1].

    Returns:
      float32[B, V].
    """
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    rank_V = jnp.arange(logits_BV.shape[-1])
    sorted_BV = jnp.where((rank_V < top_k) | (top_k <= 0), sorted_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # Without a limit, rounding of the sum must not cost the last tokens their place.
    kept_BV = ((before_BV < jnp.maximum(top_p, TINY)) | (top_p >= 1.0)) & (sorted_BV > -jnp.inf)
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def sample(logits_BV, keys_B, temperature, top_k=0, top_p=1.0):
    """One token for each row.

    Args:
      logits_BV: float32[B, V]; -inf for what must not come.
      keys_B: random keys [B], one a row, so that a row's draw does not depend on the batch around it.
      temperature: float32[] >= 0; towards 0 the most likely token, one at random where several are equal.
      top_k, top_p: see `truncate`.

    Returns:
      int32[B].
    """
    # Zero for the greatest before the division: however small the temperature, nothing becomes inf or NaN.
    below_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    truncated_BV = truncate(below_BV / jnp.maximum(temperature, TINY), top_k, top_p)
    return jax.vmap(jax.random.categorical)(keys_B, truncated_BV).astype(jnp.int32)
