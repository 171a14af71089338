"""Generation by our engine against transformers' Kosmos-2 in PyTorch, on this machine's CPU, in one run.

    python benchmarks/inference.py [--threads 2] [--repeats 9] [--only beams]

Shapes, threads and the table are those of benchmarks/cpu.py. Each prompt has an image, and encoding it is part of the
work; nobody ends before the tokens that were asked for. Where requests arrive at random, ours enter the running batch
of at most eight; transformers takes batches of at most eight, of those who are there when the last one ended.
"""

import statistics
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
from contenders import Q, decode_steps, random_rows, their_inputs
from cpu import SHAPE, WARM_UPS, compare, measure

PROMPT, NEW = Q + 7, 64  # <s>, an image, four words; tokens to generate
REQUESTS, SECONDS, BATCH = 64, 2.0, 8
IMAGES, CANDIDATES, LENGTH = 8, 6, 8
POOL, STEPS = 256, 16
_draw = np.random.default_rng(0)
TIMES, LENGTHS = np.sort(_draw.uniform(0, SECONDS, REQUESTS)), _draw.integers(8, NEW + 1, REQUESTS)
LATENCIES = {"ours": [], "transformers": []}
clock = time.perf_counter


def layout(models):
    """Ids go in and come out: of a tokenizer only the layout is needed."""
    from kosmos_jax.modality import modalities

    ids = dict(bos=0, pad=1, eos=2, unk=3, mask=SHAPE.vocab - 6, line=SHAPE.vocab - 3)
    return SimpleNamespace(**ids, decode=lambda ids: "", modalities=modalities(models.config))


def our_generator(models, **engine):
    from kosmos_jax.inference.generator import Generator

    generator = Generator(models.config, models.params, layout(models), **engine)
    generator.engine.allowed[2] = False  # nobody ends early
    return generator


def prompts_of(ids, slots, pixels) -> list:
    """Each row with its one image, as our engine takes it."""
    from kosmos_jax.inference.prompts import EncodedPrompt

    starts = np.argmax(slots >= 0, axis=1)
    return [EncodedPrompt(row, ("image",), starts[b : b + 1], {"image": [pixels[b]]}) for b, row in enumerate(ids)]


def their_options(new: int, beams: int = 1) -> dict:
    lengths = dict(max_new_tokens=new, min_new_tokens=new)
    return lengths | dict(num_beams=beams, do_sample=False, eos_token_id=None, pad_token_id=1)


def generate(rows: int, new: int, beams: int, models):
    """`new` tokens for `rows` prompts; other images in every run, so that nothing is known from before."""
    ids, slots, pixels = random_rows(SHAPE.vocab, rows, PROMPT)
    generator = our_generator(models)

    def ours():
        pixels[:, 0, 0] += 1
        found = generator.complete(prompts_of(ids, slots, pixels), max_new_tokens=new, beams=beams)
        assert [len(completion.tokens) for completion in found] == [new] * rows

    inputs = their_inputs(ids, slots, pixels)

    def theirs():
        found = models.torch.eval().generate(**inputs, **their_options(new, beams))
        assert found.shape == (rows, PROMPT + new)

    return ours, theirs


def arrivals(models):
    """Requests for 8 to 64 tokens that come in two seconds, at the same random times for both."""
    from kosmos_jax.inference.options import Options
    from kosmos_jax.serving.command import PIECES

    ids, slots, pixels = random_rows(SHAPE.vocab, REQUESTS, PROMPT)
    generator = our_generator(models, pools={(POOL, 1): BATCH}, pieces=PIECES)
    engine = generator.engine
    engine.warm_up()

    def ours():
        pixels[:, 0, 0] += 1
        waiting, there, begin = list(zip(TIMES, prompts_of(ids, slots, pixels), LENGTHS, strict=True)), [], clock()
        while waiting or there:
            while waiting and waiting[0][0] <= clock() - begin:
                at, prompt, length = waiting.pop(0)
                there.append((at, engine.generate(prompt, Options(max_new_tokens=int(length)))))
            if there:
                engine.step()
            LATENCIES["ours"] += [clock() - begin - at for at, request in there if request.done]
            there = [(at, request) for at, request in there if not request.done]

    inputs = their_inputs(ids, slots, pixels)

    def theirs():
        first, begin = 0, clock()
        while first < REQUESTS:
            last = min(first + BATCH, int(np.searchsorted(TIMES, clock() - begin)))
            if last > first:
                here = {name: tensor[first:last] for name, tensor in inputs.items()}
                models.torch.eval().generate(**here, **their_options(int(LENGTHS[first:last].max())))
                LATENCIES["transformers"] += [clock() - begin - at for at in TIMES[first:last]]
                first = last

    return ours, theirs


def candidates(models):
    """How likely each of some answers is after several images, which all of them share."""
    import torch

    from kosmos_jax.inference.prompts import EncodedPrompt

    image, slots, _ = random_rows(SHAPE.vocab, 1, Q + 3)
    row = np.concatenate([image[0, :1], *[image[0, 1:]] * IMAGES])
    slots = np.concatenate([slots[0, :1], *[slots[0, 1:]] * IMAGES])
    draw = np.random.default_rng(1)
    answers = draw.integers(100, SHAPE.vocab - 10, (CANDIDATES, LENGTH), np.int32)
    pixels = random_rows(SHAPE.vocab, CANDIDATES * IMAGES, PROMPT)[2]
    generator = our_generator(models)
    starts = np.flatnonzero((slots >= 0) & (np.roll(slots, 1) < 0))

    def prompt(b: int):
        return EncodedPrompt(row, ("image",) * IMAGES, starts, {"image": list(pixels[b * IMAGES :][:IMAGES])})

    def ours():
        pixels[:, 0, 0] += 1
        generator.score_each([prompt(0)], [answers])

    def apart():
        pixels[:, 0, 0] += 1
        generator.score_each([prompt(b) for b in range(CANDIDATES)], [[answer] for answer in answers])

    whole = np.stack([np.concatenate([row, answer]) for answer in answers])
    mask = np.tile(np.concatenate([slots, np.full(LENGTH, -1)]), (CANDIDATES, 1))
    inputs = their_inputs(whole, mask, pixels)

    @torch.inference_mode()
    def theirs():
        models.torch.eval()(**inputs).logits.log_softmax(-1)

    return ours, theirs, apart


WORK = (
    ("first token, 1 prompt", partial(generate, 1, 1, 1), 1),
    *(
        (f"{NEW} tokens, {rows} prompt{'s' * (rows > 1)}", partial(generate, rows, NEW, 1), rows * NEW)
        for rows in (1, 8, 32)
    ),
    (f"{NEW} tokens, 5 beams, 1 prompt", partial(generate, 1, NEW, 5), NEW),
    (f"{REQUESTS} requests in {SECONDS:g} s", arrivals, int(LENGTHS.sum())),
    (f"{CANDIDATES} answers after {IMAGES} images", lambda models: candidates(models)[:2], CANDIDATES * LENGTH),
)


def step(models, rows: int):
    """Contenders: a dispatch of 16 decode steps, their products alone, and reading as many bytes; and the bytes."""
    import jax
    import jax.numpy as jnp

    device = our_generator(models).engine.device
    decode, size = decode_steps(device, SHAPE.vocab, rows, POOL, PROMPT, STEPS)
    kernels = [x for x in jax.tree.leaves(device._weights["decoder"]) if x.ndim == 2]
    head, seconds = device._weights["embedding"][...], []
    block, x = jnp.ones(size // 4, jnp.float32), jnp.ones((rows, 4 * SHAPE.text["width"]), jnp.float32)

    @jax.jit
    def products(x, kernels, head):
        return [x[:, : len(kernel)] @ kernel for kernel in kernels], x[:, : head.shape[1]] @ head.T

    read = jax.jit(jnp.sum)

    alone = (lambda: jax.block_until_ready(products(x, kernels, head)), lambda: jax.block_until_ready(read(block)))
    return (lambda: seconds.append(decode()), *alone), seconds, size


def steps(models, repeats: int):
    print(f"\n{'a step of':14}{'ms':>8}{'products, ms':>14}{'reading, ms':>13}{'MB':>6}   reading / step")
    for rows in (1, 8, 32):
        contenders, seconds, size = step(models, rows)
        _, products, reading = (1e3 * statistics.median(run) for run in measure(contenders, repeats))
        own = 1e3 * statistics.median(seconds[WARM_UPS:])
        words = f"{own:8.2f}{products:14.2f}{reading:13.2f}{size / 1e6:6.0f}{reading / own:12.0%}"
        print(f"{f'{rows} prompts':14}{words}", flush=True)


def after(models, repeats: int):
    for side, seconds in LATENCIES.items():
        if seconds := seconds[WARM_UPS * REQUESTS :]:
            tail = sorted(seconds)[int(0.95 * len(seconds))]
            print(f"{REQUESTS} requests, {side}: {statistics.mean(seconds):.2f} s at the mean, 95 of 100 by {tail:.2f}")
    ours, _, apart = candidates(models)
    one, six = (statistics.median(run) for run in measure((ours, apart), max(2, repeats // 3)))
    print(f"{CANDIDATES} answers after {IMAGES} images of their own: {six * 1e3:.0f} ms, {six / one:.2f} times as long")
    steps(models, repeats)


if __name__ == "__main__":
    compare(WORK, __doc__.splitlines()[0], after)
