"""What a request gets, to the last bit, does not depend on what else the engine does."""

import random

import jax
import numpy as np
import pytest

from kosmos_jax.inference.generator import Generator
from kosmos_jax.inference.options import Options
from kosmos_jax.inference.prompts import encode_prompt
from tests.inference.compiles import compiled

POOLS = {(64, 1): 3, (128, 1): 2, (128, 4): 2}


@pytest.fixture(scope="module")
def fixed(config, params, tokenizer):
    return Generator(config, params, tokenizer, pools=POOLS, chunk=16, steps=4, pieces=2)


def random_request(draw, images, tokenizer):
    """A prompt and options, with any of what a request may say."""
    words = ["The digit", " is", "plus", " seven", "A handwritten four", " and words", "", "<image>"]
    parts = [draw.choice(words) if draw.random() < 0.6 else draw.choice(images) for _ in range(draw.randint(1, 4))]
    prompt = encode_prompt(parts, tokenizer)
    options = dict(max_new_tokens=draw.randint(1, 12), top_logprobs=draw.choice([None, 0, 3]))
    kind = draw.choice(["greedy", "greedy", "sampled", "beams", "n", "choice", "penalties"])
    if kind in ("sampled", "n", "penalties"):
        options |= dict(temperature=draw.choice([0.5, 2.0]), seed=draw.randrange(-(2**63), 2**63))
        options |= draw.choice([{}, dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(top_k=9, top_p=0.9)])
    if kind == "n":
        options |= dict(n=draw.randint(2, 4))
    if kind == "beams":
        options |= dict(beams=draw.randint(2, 4), n=2, top_logprobs=None, length_penalty=draw.choice([0.0, 1.0]))
    if kind == "choice":
        options |= dict(choice=["seven", "seventeen", "four", "two plus two"], top_logprobs=None)
    if kind == "penalties":
        options |= draw.choice([dict(repetition_penalty=1.3), dict(no_repeat_ngram=2), dict(min_new_tokens=1)])
        options |= draw.choice([dict(bias={7: 2.0}), dict(allowed=list(range(5, 30))), dict(stop=["e", "th"])])
    return prompt, Options(**options)


def run(engine, requests, draw):
    """Starts requests at random turns, cancels some others between them, and returns what each got."""
    left, queued = list(requests), []
    while left or engine.busy:
        while left and draw.random() < 0.4:
            queued.append(engine.generate(*left.pop(0)))
        if draw.random() < 0.1:
            victim = engine.generate(*draw.choice(requests))
            for _ in range(draw.randint(0, 3)):
                engine.step()
            engine.cancel(victim)
        engine.step()
    return [request.completions for request in queued]


@pytest.mark.parametrize("seed", range(2))
def test_any_traffic_gives_each_request_the_bits_that_it_gets_alone(fixed, tokenizer, seed):
    draw, engine = random.Random(seed), fixed.engine
    images = list(np.random.default_rng(7).integers(0, 256, (6, 24, 20, 3), np.uint8))
    requests = [random_request(draw, images, tokenizer) for _ in range(25)]
    alone = []
    for request in requests:
        queued = engine.generate(*request)
        while not queued.done:
            engine.step()
        alone.append(queued.completions)
    hits = engine.reader.hits
    assert run(engine, requests, draw) == alone
    assert engine.reader.hits > hits  # also when what was read before is used again
    engine.release()
    assert run(engine, requests, draw) == alone


@pytest.mark.parametrize("committed", [False, True], ids=["weights anywhere", "weights put on a device"])
def test_after_the_warm_up_nothing_is_compiled_whatever_is_mixed(config, params, tokenizer, committed):
    params = jax.device_put(params, jax.devices()[0]) if committed else params
    draw, engine = random.Random(99), Generator(config, params, tokenizer, pools=POOLS, chunk=16, steps=4).engine
    images = list(np.random.default_rng(8).integers(0, 256, (6, 24, 20, 3), np.uint8))
    engine.warm_up()
    with compiled() as programs:
        prompt = encode_prompt([images[0], "plus"], tokenizer)
        scoring = engine.score(prompt, [tokenizer.encode(text) for text in ("seven", "four, and")], top=2)
        while not scoring.done:
            engine.step()
        run(engine, [random_request(draw, images, tokenizer) for _ in range(40)], draw)
    assert not programs


def test_a_fresh_engine_has_every_slot_free_again(fixed, tokenizer):
    draw, engine = random.Random(5), fixed.engine
    images = list(np.random.default_rng(8).integers(0, 256, (2, 24, 20, 3), np.uint8))
    run(engine, [random_request(draw, images, tokenizer) for _ in range(10)], draw)
    assert not engine.busy and not any(pool.live for pool in engine._pools.values())
