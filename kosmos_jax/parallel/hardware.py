"""What a device can do at best: the denominator of MFU."""

import time

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of one JAX device, by the start of its device_kind (the makers' data sheets; on TPU v7 JAX shows
# a chip as two devices). The first match counts.
PEAK_BF16 = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("TPU7x", 1153e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA B200", 2250e12),
)


def peak_flops(device) -> float | None:
    """Best FLOP/s of a device: from the table; on CPU a large float32 product, timed here; None if unknown."""
    if device.platform == "cpu":
        return _timed_product(device) / jax.local_device_count()
    return next((peak for start, peak in PEAK_BF16 if device.device_kind.startswith(start)), None)


def _timed_product(device, size=1536, repeats=5) -> float:
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
