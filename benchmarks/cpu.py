"""Our model against transformers' Kosmos-2 in PyTorch, on this machine's CPU, in one run.

    python benchmarks/cpu.py [--threads 2] [--repeats 12] [--only step]

benchmarks/inference.py does the same for generation.

Both are in float32 with random weights, of the same shapes, on the same cores; transformers runs with its default
attention (SDPA). Runs of the two alternate, so that whatever else the machine does hits both; the table gives the
median and the least time of each, and the ratio of the medians.

A row of work is a function here that returns (ours, theirs), two functions without arguments that do the work once.
"""

import argparse
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from contenders import Shape, our_config, random_rows, their_inputs, their_model, train_step

SHAPE = Shape(
    vocab=8192,
    text=dict(width=512, layers=4, heads=8, ffn=2048),
    vision=dict(width=256, layers=4, heads=4, ffn=1024),
    rows=4,
    tokens=256,
    unroll=4,  # as PyTorch's layers are
)
WARM_UPS = 2  # runs of each that are not counted


def forward(models):
    """Scores of every token of complete rows, one image in each."""
    import jax
    import numpy as np
    import torch

    from kosmos_jax.model import with_parameters

    ids, slots, pixels = random_rows(SHAPE.vocab, SHAPE.rows, SHAPE.tokens)
    ones, positions = np.ones_like(ids), np.broadcast_to(np.arange(SHAPE.tokens, dtype=np.int32), ids.shape)

    @jax.jit
    def compiled(params, *batch):
        model = with_parameters(models.graph, params)
        return model.logits(model(*batch))

    def ours():
        jax.block_until_ready(compiled(models.params, ids, ones, positions, slots, {"image": pixels}))

    inputs = their_inputs(ids, slots, pixels)

    @torch.inference_mode()
    def theirs():
        models.torch.eval()(**inputs)

    return ours, theirs


ROWS_READ = f"{SHAPE.rows} x {SHAPE.tokens} tokens, {SHAPE.rows} images"
# Name, function that makes the two contenders, tokens that one run makes or reads.
WORK = (
    (f"forward, {ROWS_READ}", forward, SHAPE.rows * SHAPE.tokens),
    (f"training step, {ROWS_READ}", partial(train_step, SHAPE), SHAPE.rows * SHAPE.tokens),
)


def measure(contenders, repeats: int) -> list[list[float]]:
    """Seconds of every run of each contender; they take turns, after two runs each to warm up."""
    times = [[] for _ in contenders]
    for repeat in range(-WARM_UPS, repeats):
        for run, contender in zip(times, contenders, strict=True):
            start = time.perf_counter()
            contender()
            if repeat >= 0:
                run.append(time.perf_counter() - start)
            time.sleep(0.05)  # the other library's idle threads stop spinning
    return times


def processor() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def compare(work, description: str, after=lambda models, repeats: None):
    """The command: a table of some rows of work, and what `after` has to say."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args()
    # JAX takes as many threads as there are cores that it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import torch
    import transformers
    from flax import nnx

    from kosmos_jax.model import Kosmos, abstract_model, parameters

    torch.set_num_threads(args.threads)
    config = our_config(SHAPE)
    params = jax.jit(lambda: parameters(Kosmos(config, nnx.Rngs(0))))()
    models = SimpleNamespace(config=config, graph=abstract_model(config)[0], params=params, torch=their_model(SHAPE))
    ours, theirs = sum(x.size for x in params.values()), sum(p.numel() for p in models.torch.parameters())
    print(f"{processor()}, Python {platform.python_version()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, float32")
    print(f"parameters: ours {ours / 1e6:.2f}M, transformers {theirs / 1e6:.2f}M\n")
    print(f"{'':46}{'ours, ms':>18}{'transformers, ms':>20}{'ratio':>8}")
    print(f"{'':46}{'median  least':>18}{'median  least':>20}")
    for name, make, tokens in work:
        if args.only not in name:
            continue
        ours, theirs = measure(make(models), args.repeats)
        columns = [f"{statistics.median(run) * 1e3:7.0f}{min(run) * 1e3:7.0f}" for run in (ours, theirs)]
        ratio = statistics.median(theirs) / statistics.median(ours)
        speeds = " / ".join(f"{tokens / statistics.median(run):.0f}" for run in (ours, theirs))
        print(f"{name:46}{columns[0]:>18}{columns[1]:>20}{ratio:8.2f}   {speeds} tokens/s", flush=True)
    after(models, args.repeats)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    compare(WORK, __doc__.splitlines()[0])
