"""Batches arrive in order, ahead of time, on the right devices; errors arrive where they are expected."""

import threading

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.training.feed import DEPTH, Feed, batch_shardings, local_range, place

from .conftest import random_batch, tiny_config


def test_steps_come_in_order_and_end():
    feed = Feed(((step, step * 10, {}) for step in range(5)), lambda arrays: arrays + 1)
    assert [(step, arrays) for step, arrays, _ in feed] == [(step, step * 10 + 1) for step in range(5)]


def test_an_error_of_the_data_reaches_the_loop():
    def batches():
        yield 0, 0, {}
        raise ValueError("record 7 is corrupt")

    feed = Feed(batches(), lambda arrays: arrays)
    assert next(feed)[0] == 0
    with pytest.raises(ValueError, match="record 7"):
        next(feed)


def test_the_feed_stays_a_few_batches_ahead_and_no_more():
    made, enough = [], threading.Event()

    def batches():
        for step in range(100):
            made.append(step)
            if len(made) > DEPTH:
                enough.set()
            yield step, None, {}

    feed = Feed(batches(), lambda arrays: arrays)
    assert enough.wait(timeout=10)
    feed.close()
    assert len(made) <= DEPTH + 2


def test_a_batch_is_split_over_rows_and_items():
    mesh = make_mesh(ConfigDict(dict(data=2, fsdp=2, tensor=1, context=2)))
    shardings, batch = batch_shardings(tiny_config().model, mesh), random_batch(microbatches=2)
    placed = place(batch, batch, shardings, jax.tree.map(lambda _: 0, batch))
    for array, original in zip(jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True):
        np.testing.assert_array_equal(array, original)
        assert array.addressable_shards[0].data.shape[1] == original.shape[1] // 4
    tokens = batch["tokens"]
    assert placed["tokens"].addressable_shards[0].data.shape[2] == tokens.shape[2] // 2
    assert local_range(shardings["tokens"], tokens.shape, 1) == slice(0, tokens.shape[1])
