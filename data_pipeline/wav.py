"""Samples as the bytes of a WAV file."""

import io
import wave

import numpy as np

# Decoders overshoot: clipped. Floats beyond this are no share of full scale.
OVERSHOOT = 2.0


def wav(samples: np.ndarray, rate: int) -> bytes:
    """A WAV file of 16 bits.

    Args:
      samples: [n] or [n, channels]. Integers of any width are taken for samples of 16 bits, as datasets have them in
        int64; floats are from -1 to 1.
      rate: in hertz.

    Raises:
      ValueError: there are no samples, or numbers that are no samples of their kind.
    """
    if not samples.size:
        raise ValueError("there are no samples")
    low, high = samples.min(), samples.max()
    if np.issubdtype(samples.dtype, np.floating):
        if not (-OVERSHOOT <= low and high <= OVERSHOOT):  # NaN is neither
            raise ValueError(f"its samples go from {low:g} to {high:g}; floats go from -1 to 1")
        samples = np.round(np.clip(samples, -1, 1) * 32767)
    elif not (-(2**15) <= low and high < 2**15):
        raise ValueError(f"its samples go from {low} to {high}; those of 16 bits go from -32768 to 32767")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()
