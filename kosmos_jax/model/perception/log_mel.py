"""Sound as Whisper's encoder reads it: the log-mel spectrogram of transformers' WhisperFeatureExtractor, on the device.

A tenth of the bytes would travel to the device as a spectrogram, but samples are what other encoders read, and what a
file holds: the host needs to know of no encoder.
"""

import jax.numpy as jnp
import numpy as np

RATE = 16_000  # samples a second
WINDOW, HOP = 400, 160


def slaney(frequency):
    """Frequencies in Hz on Slaney's mel scale: linear below 1,000 Hz, logarithmic above."""
    linear = 3 * frequency / 200
    return np.where(frequency < 1000, linear, 15 + np.log(np.maximum(frequency, 1000) / 1000) * 27 / np.log(6.4))


def mel_filters(bins: int) -> np.ndarray:
    """float64[201, bins]: triangles between 0 and 8,000 Hz, evenly spaced in mels, each of the same area.

    librosa.filters.mel(sr=16000, n_fft=400, n_mels=bins), which openai/whisper ships as assets/mel_filters.npz.
    """
    mels = np.linspace(0, slaney(np.float64(RATE / 2)), bins + 2)
    edges = np.where(mels < 15, 200 * mels / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    frequency = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def log_mel(samples_NS, bins: int):
    """The spectrogram of clips.

    Args:
      samples_NS: int16[N, S], or float32 from -1 to 1; S is a multiple of `HOP`. Silence after a clip's end is part of
        it: the floor below is relative to the loudest place of all S.
      bins: of the mel scale.

    Returns:
      float32[N, S / HOP, bins]: log10 of the power, at most 8 below the loudest place of the clip, scaled by
      (x + 4) / 4.
    """
    x_NS = samples_NS.astype(jnp.float32)
    if jnp.issubdtype(samples_NS.dtype, jnp.integer):
        x_NS = x_NS / 32768
    x_NS = jnp.pad(x_NS, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    starts = np.arange(samples_NS.shape[1] // HOP) * HOP  # the last frame, centred on the end, is left out
    frames_NTW = x_NS[:, starts[:, None] + np.arange(WINDOW)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power_NTF = jnp.abs(jnp.fft.rfft(frames_NTW * window.astype(np.float32))) ** 2
    mel_NTM = jnp.einsum("ntf,fm->ntm", power_NTF, mel_filters(bins).astype(np.float32), precision="highest")
    log_NTM = jnp.log10(jnp.maximum(mel_NTM, 1e-10))
    return (jnp.maximum(log_NTM, log_NTM.max(axis=(1, 2), keepdims=True) - 8) + 4) / 4
