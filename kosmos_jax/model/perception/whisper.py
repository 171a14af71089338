"""Whisper's encoder (arXiv 2212.04356) for clips of any fixed length, from samples to a vector for every 20 ms."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kosmos_jax.checks import nearest_multiples
from kosmos_jax.model.attention import Attention
from kosmos_jax.model.layers import gelu, layer_norm, linear, unpinned
from kosmos_jax.model.perception.blocks import TwoStacks, size_problems, stack_flops
from kosmos_jax.model.perception.log_mel import HOP, RATE, WINDOW, log_mel

STRIDE = 2 * HOP  # samples for each vector


def sinusoids(length: int, width: int) -> np.ndarray:
    """float32[length, width]: the sines of all frequencies, then the cosines.

    In float32 as in openai/whisper's model.py, which published weights hold: 1e-4 off at position 1,500.
    """
    increment = np.float32(math.log(10_000) / (width // 2 - 1))
    exponents = -increment * np.arange(width // 2, dtype=np.float32)
    rates = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class WhisperLayer(nnx.Module):
    """A pre-LN transformer block, of which the projection to keys has no bias."""

    def __init__(self, config, rngs, dtype):
        self.norm1 = layer_norm(config.width, rngs, dtype)
        self.attention = Attention(config.width, config.heads, rngs, dtype, key_bias=False)
        self.norm2 = layer_norm(config.width, rngs, dtype)
        self.fc1 = linear(config.width, config.ffn, rngs, dtype)
        self.fc2 = linear(config.ffn, config.width, rngs, dtype)


class Whisper(TwoStacks):
    """Log-mel, two convolutions, sinusoids, pre-LN blocks, LayerNorm.

    Published encoders read 30 s, `shape` (480000,): 1,500 vectors. Shorter clips cost less, with the same weights.
    """

    DTYPES = ("int16",)
    KEYS = ("mel_bins", "width", "layers", "heads", "ffn", "top_layers")
    SHARDINGS = (
        (r"conv[12]/kernel", "conv_wdf"),
        (r"conv[12]/bias", "replicated"),
        (r"ln_post/(scale|bias)", "replicated"),
    )

    def __init__(self, config, shape, rngs, dtype, constrain=unpinned):
        """Builds the encoder.

        Args:
          config: the `encoder` section of a modality.
          shape: of a clip, (samples,) at 16 kHz.
          rngs: of the initial values.
          dtype: of the arithmetic; the spectrogram is float32 always.
          constrain: pins shardings, see `Kosmos`.
        """
        self.config, self.shape, self.width = config, tuple(shape), config.width
        self.constrain = constrain
        conv = dict(kernel_size=3, padding=1, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        self.conv1 = nnx.Conv(config.mel_bins, config.width, **conv)
        self.conv2 = nnx.Conv(config.width, config.width, strides=2, **conv)
        self.build_stacks(lambda rngs: WhisperLayer(config, rngs, dtype), config, rngs)
        self.ln_post = layer_norm(config.width, rngs, dtype)

    @staticmethod
    def patches(config, shape) -> int:
        """P, the vectors that one clip gives: 50 a second."""
        return shape[0] // STRIDE

    @staticmethod
    def described(shape, tokens: int) -> str:
        """An item in words, for the log."""
        seconds = shape[0] / RATE
        return f"{seconds:g} s at {RATE:,} Hz, {tokens} vectors, {tokens / seconds:.1f} a second"

    @staticmethod
    def flops(config, shape) -> dict[str, float]:
        """Forward, for one clip, by stack from the samples upward; see kosmos_jax/training/flops.py."""
        vectors = Whisper.patches(config, shape)
        mel = 2 * 2 * vectors * (WINDOW // 2 + 1) * config.mel_bins
        stem = 2 * 3 * vectors * config.width * (2 * config.mel_bins + config.width)
        return stack_flops(config, vectors, mel + stem)

    @staticmethod
    def problems(config, shape) -> Iterator[str]:
        """What cannot be, each message beginning with the key below the modality's section."""
        found = list(size_problems(config, "mel_bins"))
        yield from found
        if not found and (config.width % 2 or config.width < 4):
            yield f"encoder.width is {config.width}; sinusoidal positions need an even width, at least 4"
        if len(shape) != 1 or shape[0] % STRIDE:
            hint = f": try {nearest_multiples(shape[0], STRIDE)}" if len(shape) == 1 else ""
            yield f"shape is {shape}; a clip is one row of samples, {STRIDE} for each vector{hint}"

    def __call__(self, samples_NS, *, remat="none", unroll=1):
        """Hears clips.

        Args:
          samples_NS: int16[N, S] at 16 kHz, or float32 from -1 to 1; [S] is `shape`. Silence fills short clips.
          remat, unroll: see `scan_layers`.

        Returns:
          float[N, P, d].
        """
        if samples_NS.shape[1:] != self.shape:
            raise ValueError(f"this encoder reads clips of {self.shape} and was given {samples_NS.shape[1:]}")
        x_NPd = log_mel(samples_NS, self.config.mel_bins).astype(self.conv1.dtype)
        x_NPd = gelu(self.conv2(gelu(self.conv1(x_NPd))))
        x_NPd = self.constrain(x_NPd + sinusoids(*x_NPd.shape[1:]).astype(x_NPd.dtype), "items_npd")

        return self.ln_post(self.through_stacks(x_NPd, gelu, remat, unroll))
