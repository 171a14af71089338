"""Where a token stands: xPos (the paper), and fairseq's sinusoids (with which the released Kosmos-2 was trained).

The paper says xPos; no released code of the family runs it, see docs/fidelity.md. A config chooses "xpos",
"sinusoidal" or "both".
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange

SCALE_BASE = 512
# The middle of the positions for which xPos was measured; its scale leaves float32's range beyond twice as many.
CENTRE = 16_384
# fairseq counts positions from padding_idx + 1, and padding_idx is 1.
SINUSOID_OFFSET = 2


def most_positions(text) -> int:
    """The tokens that a row, or a prompt with its continuation, may have, by `config.model.text`."""
    limits = {"xpos": 2 * CENTRE, "sinusoidal": text.max_positions}
    return limits.get(text.positions) or min(limits.values())


def xpos_tables(positions_BT, head_width: int):
    """Cosine, sine and the scales of queries and keys of xPos, as torchscale/component/xpos_relative_position.py.

    With i = 0 .. K/2 - 1:  theta_i = 10000^(-2i/K),  zeta_i = (2i + 0.4 K) / (1.4 K),  scale = zeta_i^(+-n / 512).

    torchscale counts n from the middle of the sequence; that constant cancels between query and key. Here n counts
    from position 0 in the cache and in training alike, so that a key can be rotated once and kept.

    Each scale has a factor, the power of two that brings it nearest to 1 at position `CENTRE`. That cancels too, and
    without a rounding; it keeps queries, keys and their gradients within float32's range. (Without it keys lose their
    gradient from position 26,000 on, and scores are NaN from 36,000 on.) What limits accuracy is the angle, n radians
    in float32: relative to its summands a score is known to 2e-5 up to position 2,047, and to 1e-4 up to 32,767.

    Args:
      positions_BT: int32[B, T], below 2 * CENTRE.
      head_width: K, even.

    Returns:
      Four float32[B, T, K/2].
    """
    pair = np.arange(0, head_width, 2, dtype=np.float64)
    theta = 10000.0 ** (-pair / head_width)
    zeta = (pair + 0.4 * head_width) / (1.4 * head_width)
    n = positions_BT.astype(jnp.float32)[..., None]
    angle = n * jnp.asarray(theta, jnp.float32)
    exponent = n / SCALE_BASE * jnp.asarray(np.log(zeta), jnp.float32)
    factor = np.exp2(np.round(-CENTRE / SCALE_BASE * np.log2(zeta))).astype(np.float32)
    return jnp.cos(angle), jnp.sin(angle), jnp.exp(exponent) * factor, jnp.exp(-exponent) / factor


def rotate(x_BTHK, cos_BTk, sin_BTk):
    """Turns each adjacent pair (x_2i, x_2i+1) by its angle, in float32 (the scale spans many orders of magnitude).

    Args:
      x_BTHK: float[B, T, H, K].
      cos_BTk, sin_BTk: float32[B, T, K/2].
    """
    even, odd = x_BTHK[..., 0::2].astype(jnp.float32), x_BTHK[..., 1::2].astype(jnp.float32)
    cos, sin = cos_BTk[:, :, None], sin_BTk[:, :, None]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return rearrange(turned, "b t h k two -> b t h (k two)").astype(x_BTHK.dtype)


def xpos(q_BTHK, k_BTHK, positions_BT, scale_keys: bool = True):
    """Rotates queries and keys; a product of the two then holds zeta^((n - m) / 512) for positions n and m.

    Args:
      q_BTHK, k_BTHK: float[B, T, H, K], straight from their projections.
      positions_BT: int32[B, T]; the same for both, since a cached key was rotated when it was written.
      scale_keys: whether keys get their scale too; if not, `key_scales` has it.

    Returns:
      The pair, same shapes and dtypes.
    """
    cos, sin, q_scale, k_scale = xpos_tables(positions_BT, q_BTHK.shape[-1])
    k_scale = k_scale if scale_keys else 1.0
    return rotate(q_BTHK, cos * q_scale, sin * q_scale), rotate(k_BTHK, cos * k_scale, sin * k_scale)


def key_scales(positions_BS, head_width: int):
    """float32[B, S, K]: the scales of xPos for keys that were rotated only.

    Args:
      positions_BS: int32[B, S].
      head_width: K.
    """
    return jnp.repeat(xpos_tables(positions_BS, head_width)[3], 2, axis=-1)


def sinusoids(positions_BT, width: int):
    """fairseq's SinusoidalPositionalEmbedding: the sines of all frequencies, then the cosines.

    Args:
      positions_BT: int32[B, T], 0 for the first token.
      width: D, even.

    Returns:
      float32[B, T, D]: [sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (D/2 - 1)) and p = position + 2.
    """
    half = width // 2
    frequency = np.exp(np.arange(half) * -(np.log(10000.0) / (half - 1)))
    angle = (positions_BT + SINUSOID_OFFSET).astype(jnp.float32)[..., None] * jnp.asarray(frequency, jnp.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
