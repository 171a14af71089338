import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.shuffle import Order, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_it_is_a_permutation(size):
    for seed in [(0, 0, 0), (0, 0, 1), (7, 2, 3)]:
        assert sorted(shuffled(np.arange(size), size, seed)) == list(range(size))


@pytest.mark.parametrize("size", [1000, 10**6, 10**12])
def test_epochs_and_neighbours_are_uncorrelated(size):
    orders = np.array([shuffled(np.arange(1000), size, (0, 0, epoch)) for epoch in range(8)], float)
    between = np.corrcoef(orders) - np.eye(8)
    neighbours = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
    assert np.abs(between).max() < 0.16  # five standard deviations for a thousand rows
    assert np.abs(neighbours).max() < 0.16


def test_the_order_never_changes_with_the_code():
    assert shuffled(np.arange(10), 10, (0, 1, 2)).tolist() == [0, 6, 7, 5, 4, 9, 2, 1, 3, 8]
    blocks, rows = Order(np.array([2, 1, 0, 3]), (0, 1))(np.arange(9))
    assert (blocks.tolist(), rows.tolist()) == ([3, 0, 3, 0, 3, 1, 1, 0, 3], [0, 1, 1, 0, 2, 0, 0, 1, 2])


@given(st.lists(st.integers(0, 7), min_size=1, max_size=60).filter(any), st.integers(0, 3))
def test_every_epoch_has_every_row_of_every_block_once_in_an_order_of_its_own(rows, seed):
    order, total = Order(np.array(rows), (seed, 1)), sum(rows)
    everything = sorted((block, row) for block, n in enumerate(rows) for row in range(n))
    blocks, within = order(np.arange(2 * total))
    drawn = list(zip(blocks.tolist(), within.tolist(), strict=True))
    assert sorted(drawn[:total]) == sorted(drawn[total:]) == everything
    # Any draws in any order are what a long list of them has.
    some = np.random.default_rng(seed).integers(0, 2 * total, 9)
    assert [drawn[g] for g in some] == list(zip(*(found.tolist() for found in order(some)), strict=True))


def test_the_rows_of_a_batch_come_from_few_blocks_wherever_it_is():
    order = Order(np.full(1000, 100), (0,))
    for first in (0, 12_345, 10**15):
        assert len(set(order(np.arange(first, first + 200))[0].tolist())) <= 2 * Order.WINDOW
