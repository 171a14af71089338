"""Shares of rows: exact in every step for sources with media, exact over time for text, at any step without a past."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.layout import PERIOD, batch_layout
from kosmos_jax.config import load_config
from tests.data_pipeline.demo_data import demo_config


def layout(rows=8, microbatches=1, data_shards=1, bundle_rows=4, **sources):
    """Of sources given as (share, places for images in a row)."""
    config = demo_config(data__batch_rows=rows, data__bundle_rows=bundle_rows, training__microbatches=microbatches)
    config.data.sources = {
        name: dict(kind="digits", share=share, per_row=dict(image=per_row))
        for name, (share, per_row) in sources.items()
    }
    return batch_layout(config, data_shards)


def test_the_smallest_corpora_have_a_row_in_some_steps_and_their_exact_share_over_time():
    found = layout(16, books=(0.5, 0), wiki=(0.46, 0), tiny=(0.04, 0), pairs=(1.0, 3))
    counts = np.array([np.bincount(found.row_source(step).ravel(), minlength=4) for step in range(1250)])
    books, pairs, tiny, wiki = counts.T
    assert set(pairs) == {8} and set(tiny) == {0, 1} and set(books + wiki + tiny) == {8}
    assert (books.sum(), tiny.sum(), wiki.sum()) == (5000, 400, 4600)  # 1,250 steps of 8 rows are one PERIOD
    assert PERIOD == 10_000


shares = st.floats(0.25, 1.0) | st.lists(st.floats(0.25, 1.0), min_size=2, max_size=3).map(
    lambda values: tuple((7 * n, value) for n, value in enumerate(values))
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(shares, st.sampled_from([0, 0, 2.5])), min_size=1, max_size=4), st.integers(1, 3))
def test_draws_of_every_source_count_up_from_zero_whatever_changes_on_the_way(sources, microbatches):
    found = layout(48 * microbatches, microbatches, **{f"s{i}": source for i, source in enumerate(sources)})
    seen = np.zeros(len(sources), np.int64)
    for step in range(25):
        np.testing.assert_array_equal(found.drawn(step), seen)
        for a in range(microbatches):
            source, draw = found.draws(step, a)
            for s in range(len(sources)):
                own = draw[source == s]
                np.testing.assert_array_equal(own, seen[s] + np.arange(len(own)))
                seen[s] += len(own)


def test_shares_that_change_at_a_step_change_there_and_the_shapes_stay():
    found = layout(16, a=(((0, 0.5), (100, 0.25)), 3), b=(((0, 0.5), (100, 0.75)), 5))
    assert [np.bincount(found.row_source(step)[0]).tolist() for step in (0, 99, 100, 10**9)] == [[8, 8]] * 2 + [
        [4, 12]
    ] * 2
    assert found.size == [4, 4] and found.items["image"] == 4 * 3 + 12 * 5  # what the phase with most needs
    assert found.arrays["media"]["image"].shape[:2] == (1, 72)


def test_a_bundle_has_the_most_rows_that_divide_its_source_s():
    assert layout(24, bundle_rows=8, a=(16, 1), b=(8, 1)).size == [8, 8]
    assert layout(18, bundle_rows=8, a=(12, 1), b=(6, 1)).size == [6, 6]
    assert layout(11, bundle_rows=8, a=(11, 1)).size == [1]
    assert layout(12, bundle_rows=8, a=(9, 1), b=(3, 0)).size == [3, 1]


def test_places_for_items_may_be_a_fraction_of_one_a_row():
    found = layout(16, bundle_rows=8, a=(1.0, 1.3))
    assert found.places == [(10,)] and found.items["image"] == 20


def test_the_paper_s_table_is_a_config_with_a_line_for_each_corpus():
    config = load_config("configs/kosmos1_web.py:/data")
    found = batch_layout(config, 8)
    phase = found.phases[0]
    rows = dict(zip(found.names, phase.drawn(PERIOD) * found.size / PERIOD, strict=True))
    assert (rows["captions"], rows["pages"]) == (240, 96)
    assert rows["openwebtext2"] == pytest.approx(240 * 21.8 / 99.9, abs=0.05)
    assert rows["nih_exporter"] == pytest.approx(240 * 0.2 / 99.9, abs=0.05) and sum(rows.values()) == 576
    assert config.data.sources.wikipedia.epochs == 1.29
