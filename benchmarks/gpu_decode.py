"""Decode steps on one GPU: batch 1 as a share of the memory's bandwidth, and the curve to batch 256.

    python benchmarks/gpu_decode.py [--repeats 5] > benchmarks/gpu_decode.md

Random bfloat16 weights of 0.4B and 1.6B parameters (configs/kosmos1_sizes.py), slots of 256 entries of which 128 are
taken when a dispatch of 64 steps begins. The limit of a step is reading weights and all entries once at the bandwidth
that summing an array of four GiB reaches in the same run; cuDNN reads only the entries that are taken. `--tiny` tries
the script on two narrow layers, on any device.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from contenders import decode_steps
from flax import nnx

from kosmos_jax.config import load_config
from kosmos_jax.inference.device import Device
from kosmos_jax.model import Kosmos, parameters
from kosmos_jax.parallel.hardware import GIB

ENTRIES, TAKEN, STEPS, BATCHES = 256, 128, 64, (1, 2, 4, 8, 16, 32, 64, 128, 256)


def seconds_of(work, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def bandwidth(repeats: int, size: int) -> float:
    """Bytes a second."""
    block, total = jnp.ones(size // 2, jnp.bfloat16), jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    return size / seconds_of(lambda: total(block), repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print("# Decode steps on one GPU\n\n" + __doc__.split("\n\n")[2])
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, commit {commit}.\n")
    print(f"    $ python {shlex.join(sys.argv)}\n")
    limit = bandwidth(args.repeats, GIB // 4 if args.tiny else 4 * GIB)
    print(f"Reading: {limit / 1e9:.0f} GB/s.\n")
    print(
        "| parameters | batch | step, ms | tokens/s | read a step, GiB | of the bandwidth |\n|---|---|---|---|---|---|"
    )
    for size in ("0.4b", "1.6b"):
        changes = ["model.dtype=bfloat16", "model.perception.image.encoder.layers=1"]
        tiny = ["model.text.layers=2", "model.text.width=256", "model.text.ffn=1024", "model.text.heads=4"]
        tiny += ["model.perception.image.connector.heads=4"]
        config = load_config(f"configs/kosmos1_sizes.py:{size}", changes + tiny * args.tiny).model
        params = jax.jit(lambda config=config: parameters(Kosmos(config, nnx.Rngs(0))))()
        device = Device(config, params, eos=2, vectors=1, chunk=32, steps=STEPS, blocks=1)
        del params
        for rows in BATCHES[:3] if args.tiny else BATCHES:
            run, read = decode_steps(device, config.text.vocab_size, rows, ENTRIES, TAKEN, STEPS)
            seconds = statistics.median([run() for _ in range(args.repeats + 1)][1:])
            device.remove((ENTRIES, 1))
            speed, share = f"{seconds * 1e3:.2f} | {rows / seconds:,.0f}", f"{read / seconds / limit:.0%}"
            print(f"| {size} | {rows} | {speed} | {read / GIB:.2f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
