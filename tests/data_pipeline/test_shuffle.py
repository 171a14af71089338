import numpy as np
import pytest

from data_pipeline.shuffle import shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_it_is_a_permutation(size):
    for seed in [(0, 0, 0), (0, 0, 1), (7, 2, 3)]:
        assert sorted(shuffled(i, size, seed) for i in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [1000, 10**6, 10**12])
def test_epochs_and_neighbours_are_uncorrelated(size):
    orders = np.array([[shuffled(i, size, (0, 0, epoch)) for i in range(1000)] for epoch in range(8)], float)
    between = np.corrcoef(orders) - np.eye(8)
    neighbours = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
    assert np.abs(between).max() < 0.16  # five standard deviations for a thousand rows
    assert np.abs(neighbours).max() < 0.16


def test_the_order_never_changes_with_the_code():
    assert [shuffled(i, 10, (0, 1, 2)) for i in range(10)] == [0, 6, 7, 5, 4, 9, 2, 1, 3, 8]
