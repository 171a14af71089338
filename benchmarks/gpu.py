"""The 1.6B model on one GPU: a training step of ours against transformers' Kosmos-2 with torch.compile and SDPA.

    python benchmarks/gpu.py [--rows 8] [--tokens 1024] [--remat full] [--repeats 10]

Both compute in bfloat16 with float32 weights and AdamW, with dropout 0.1 as published and every parameter trained.
Attention weights are not dropped, on either side: our GPU kernel cannot, nor does the released code with flash
attention. Each side runs in a process of its own, so that neither takes memory from the other. MFU counts the FLOPs of
our model's formulas (kosmos_jax/training/flops.py) for both. `--tiny` runs the same on two layers, on CPU if need be,
to try the script.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

from contenders import IMAGE, Q, Shape, our_config, random_rows, their_inputs, their_model, train_step

SIDES = ("ours", "transformers")


def shape_of(args) -> Shape:
    layers, width = (2, 256) if args.tiny else (24, 2048)
    return Shape(
        vocab=65_037,
        text=dict(width=width, layers=layers, heads=width // 64, ffn=4 * width),
        vision=dict(width=width // 2, layers=layers, heads=width // 128, ffn=2 * width),
        rows=args.rows,
        tokens=args.tokens,
        dtype="bfloat16",
        remat=args.remat,
        loss_chunk=4096,
        attention_dropout=0.0,
    )


def ours(shape: Shape):
    """(one step, peak bytes so far, name and version)."""
    import jax

    from kosmos_jax.model import abstract_model

    config = our_config(shape)
    step, _ = train_step(shape, SimpleNamespace(config=config, graph=abstract_model(config)[0], torch=None))
    device = jax.devices()[0]
    return step, lambda: (device.memory_stats() or {}).get("peak_bytes_in_use", 0), f"jax {jax.__version__}"


def transformers(shape: Shape):
    """The same of transformers: weights float32, bfloat16 by autocast, compiled, fused AdamW."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = their_model(shape).to(device).train()
    ids, slots, pixels = random_rows(shape.vocab, shape.rows, shape.tokens)
    inputs = {name: tensor.to(device) for name, tensor in their_inputs(ids, slots, pixels).items()}
    labels = inputs["input_ids"].masked_fill(inputs["image_embeds_position_mask"].bool(), -100)
    adamw = torch.optim.AdamW(
        model.parameters(), lr=2e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=device == "cuda"
    )
    compiled = torch.compile(model) if device == "cuda" else model

    def step():
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = compiled(**inputs, labels=labels).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        loss.item()

    peak = torch.cuda.max_memory_allocated if device == "cuda" else lambda: 0
    return step, peak, f"torch {torch.__version__}, transformers {transformers.__version__}"


def measure(args) -> dict:
    """Median step of one side; in its own process."""
    step, peak, version = {"ours": ours, "transformers": transformers}[args.side](shape_of(args))
    for _ in range(3):
        step()
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return dict(seconds=statistics.median(seconds), least=min(seconds), peak=peak(), version=version)


def flops(shape: Shape) -> float:
    from kosmos_jax.training.flops import step_flops

    paths = ["image/encoder/trunk/", "image/encoder/top/", "image/connector/", "decoder/"]
    tokens, items = shape.rows * shape.tokens, {"image": shape.rows}
    return sum(step_flops(our_config(shape), paths, shape.tokens, tokens, items).values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, default=8)
    add("--tokens", type=int, default=1024)
    add("--remat", default="full", choices=("none", "dots", "full"), help="ours; transformers keeps everything")
    add("--repeats", type=int, default=10)
    add("--tiny", action="store_true")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args)))
        return

    import jax

    from kosmos_jax.parallel.hardware import peak_flops

    device, shape = jax.devices()[0], shape_of(args)
    best, work = peak_flops(device), flops(shape)
    rows = f"{shape.rows} rows of {shape.tokens} tokens"
    print(f"{device.device_kind}; {rows}, an image ({IMAGE} px, {Q} tokens) in each")
    print(f"{'':14}{'step, ms':>10}{'least':>8}{'tokens/s':>10}{'MFU':>7}{'peak, GiB':>11}")
    medians = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, *sys.argv[1:]]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            print(f"{side:14}failed; its message is above")
            continue
        found = json.loads(run.stdout.splitlines()[-1])
        medians[side] = seconds = found["seconds"]
        mfu = f"{work / seconds / best:7.1%}" if best else f"{'?':>7}"
        speed = f"{shape.rows * shape.tokens / seconds:10,.0f}"
        times = f"{seconds * 1e3:10.1f}{found['least'] * 1e3:8.1f}"
        print(f"{side:14}{times}{speed}{mfu}{found['peak'] / 2**30:11.1f}   {found['version']}", flush=True)
    if len(medians) == 2:
        print(f"ratio of the medians: {medians['transformers'] / medians['ours']:.2f}")


if __name__ == "__main__":
    main()
