"""What a token's scores may depend on: earlier tokens of its own document, and nothing else."""

import numpy as np
import pytest

from tests.model.tiny import model_config, quick_logits_of, random_model

LENGTHS = (9, 5, 11)  # documents packed into one row
TAIL = 7  # padding after them
SIZES = {"perception.image.tokens": 3}


@pytest.fixture(scope="module", params=["xpos", "sinusoidal", "both"])
def model(request):
    return random_model(model_config(**{"text.positions": request.param, **SIZES}), seed=5)


@pytest.fixture(scope="module")
def row():
    """One row of three documents; the first and the last hold an image each."""
    rng = np.random.default_rng(0)
    length = sum(LENGTHS) + TAIL
    tokens = rng.integers(2, 64, (1, length))
    tokens[:, -TAIL:] = 1
    segments, positions, slots = np.zeros((3, 1, length), np.int32)
    slots[:] = -1
    start = 0
    for number, count in enumerate(LENGTHS):
        segments[0, start : start + count] = number + 1
        positions[0, start : start + count] = np.arange(count)
        start += count
    slots[0, 2:5] = np.arange(3)
    slots[0, 18:21] = 3 + np.arange(3)
    return tokens, segments, positions, slots, {"image": rng.integers(0, 256, (2, 16, 16, 3), np.uint8)}


def changed(array, place):
    array = array.copy()
    array[..., place] = (array[..., place] + 7) % 60 + 2
    return array


def test_packed_documents_score_as_each_document_alone(model, row):
    packed = np.asarray(quick_logits_of(model, *row))[0]
    *texts, images = row
    alone = [np.full((3, 12), empty, np.int32) for empty in (1, 0, 0, -1)]
    starts = np.cumsum((0, *LENGTHS))[:3]
    for number, (start, count) in enumerate(zip(starts, LENGTHS, strict=True)):
        for ours, theirs in zip(alone, texts, strict=True):
            ours[number, :count] = theirs[0, start : start + count]
    scores = np.asarray(quick_logits_of(model, *alone, images))
    for number, (start, count) in enumerate(zip(starts, LENGTHS, strict=True)):
        assert abs(scores[number, :count] - packed[start : start + count]).max() <= 1e-5


def test_another_document_in_the_row_changes_nothing(model, row):
    tokens, segments, *rest = row
    before = np.asarray(quick_logits_of(model, tokens, segments, *rest))[0]
    after = np.asarray(quick_logits_of(model, changed(tokens, 10), segments, *rest))[0]
    assert np.array_equal(before[:9], after[:9]) and np.array_equal(before[14:], after[14:])
    assert (before[10:14] != after[10:14]).any(axis=1).all()


def test_a_token_changes_its_own_scores_and_later_ones_only(model, row):
    tokens, segments, positions, slots, images = row
    kept = (segments > 0).astype(np.int32)
    running = np.arange(tokens.shape[1], dtype=np.int32)[None]
    before = np.asarray(quick_logits_of(model, tokens, kept, running, slots, images))[0, :25]
    after = np.asarray(quick_logits_of(model, changed(tokens, 10), kept, running, slots, images))[0, :25]
    assert np.array_equal(before[:10], after[:10])
    assert (before[10:] != after[10:]).any(axis=1).all()


def test_an_image_changes_scores_from_its_first_slot_on(model, row):
    *texts, images = row
    before = np.asarray(quick_logits_of(model, *texts, images))[0]
    after = np.asarray(quick_logits_of(model, *texts, {"image": images["image"][[0, 0]]}))[0]
    assert np.array_equal(before[:18], after[:18])
    assert (before[18:25] != after[18:25]).any(axis=1).all()


def test_the_token_under_an_image_slot_and_in_padding_does_not_matter(model, row):
    tokens, *rest = row
    before = np.asarray(quick_logits_of(model, tokens, *rest))[0]
    after = np.asarray(quick_logits_of(model, changed(changed(tokens, slice(2, 5)), slice(-TAIL, None)), *rest))[0]
    assert np.array_equal(before[:25], after[:25]) and np.isfinite(after).all()
