"""Reading with a cache, a prompt and then token by token, gives what reading everything at once gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from kosmos_jax.model.layers import unstack
from tests.model.tiny import model_config, quick_jit, random_model

PROMPTS = (9, 6, 1)  # tokens of each row's prompt
NEW = 5  # tokens read one by one after it
SLOTS = 9 + NEW + 3  # the cache is longer than needed


@quick_jit
def read_at_once(model, tokens, segments, positions, slots, vectors_MD):
    return model.logits(model.decoder(model.embed(tokens, slots, vectors_MD, positions), segments, positions))


@quick_jit
def extend(model, tokens, branches, positions, slots, vectors_MD, cache, starts):
    embedded = model.embed(tokens, slots, vectors_MD, positions)
    hidden, cache = model.decoder.extend(embedded, branches.astype(jnp.uint32), positions, cache, starts)
    return model.logits(hidden), cache


def rows(pad_left):
    """Tokens, segments, positions and slots of all rows; prompts are padded to one length, row 0 holds an image."""
    rng = np.random.default_rng(0)
    longest = max(PROMPTS)
    tokens, segments, positions, slots = np.zeros((4, len(PROMPTS), longest + NEW), np.int32)
    tokens[:], slots[:] = 1, -1
    for row, prompt in enumerate(PROMPTS):
        start = longest - prompt if pad_left else 0
        places = [*range(start, start + prompt), *range(longest, longest + NEW)]
        tokens[row, places] = rng.integers(2, 64, prompt + NEW)
        segments[row, places] = 1
        positions[row, places] = np.arange(prompt + NEW)
    slots[0, 2:6] = np.arange(4)
    return tokens, segments, positions, slots


CASES = {
    "xpos, padded left": dict(kind="xpos", pad_left=True),
    "xpos, padded right": dict(kind="xpos", pad_left=False),
    "sinusoidal, padded left": dict(kind="sinusoidal", pad_left=True),
    "xpos, layers unstacked": dict(kind="xpos", pad_left=True, separate=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_prompt_then_token_by_token_equals_reading_at_once(case):
    model = random_model(model_config(**{"text.positions": case["kind"], "text.layers": 2}), seed=3)
    vectors_MD = jnp.asarray(np.random.default_rng(1).standard_normal((4, 32)), jnp.float32)
    batch, longest = rows(case["pad_left"]), max(PROMPTS)

    # Each row alone, its tokens side by side from position 0.
    side_by_side = [np.full_like(array, empty) for array, empty in zip(batch, (1, 0, 0, -1), strict=True)]
    for row, prompt in enumerate(PROMPTS):
        for ours, theirs in zip(side_by_side, batch, strict=True):
            ours[row, : prompt + NEW] = theirs[row, batch[1][row] == 1]
    at_once = np.asarray(read_at_once(model, *side_by_side, vectors_MD))

    if case.get("separate"):
        model.decoder.layers = unstack(model.decoder.layers)
    cache = model.decoder.empty_cache(len(PROMPTS), SLOTS)
    parts = []
    for start, end in [(0, longest), *((step, step + 1) for step in range(longest, longest + NEW))]:
        piece = [array[:, start:end] for array in batch]
        logits, cache = extend(model, *piece, vectors_MD, cache, np.full(len(PROMPTS), start))
        parts.append(np.asarray(logits))
    cached = np.concatenate(parts, axis=1)

    for row, prompt in enumerate(PROMPTS):
        difference = abs(cached[row, batch[1][row] == 1] - at_once[row, : prompt + NEW]).max()
        print(f"cached against uncached, row {row}: max abs diff {difference:.1e}")
        assert difference <= 1e-5
