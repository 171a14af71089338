"""Rows and bundles: nothing is lost, nothing is split that need not be, and little room is left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.packing import ROWS_AN_ITEM, Documents, best_fit, bundles, pack


def documents(*given) -> Documents:
    """Each a list of sentences: an int is a text's length, (kind, length) an item with its tags."""
    lengths, cuts, first, items = [], [], [0], []
    for sentences in given:
        at, seen = 0, np.zeros(2, np.int64)
        for sentence in sentences:
            if isinstance(sentence, tuple):
                seen = seen + np.eye(2, dtype=np.int64)[sentence[0]]
            at += sentence[1] if isinstance(sentence, tuple) else sentence
            cuts.append(at)
            items.append(seen)
        lengths.append(at)
        first.append(len(cuts))
    flat = (np.array(values, np.int64) for values in (lengths, cuts, first))
    return Documents(*flat, np.array(items, np.int64).reshape(-1, 2))


SENTENCES = st.lists(st.integers(1, 90) | st.tuples(st.integers(0, 1), st.integers(3, 6)), min_size=1, max_size=9)


@settings(deadline=None, max_examples=300)
@given(st.lists(SENTENCES | st.just([]), max_size=30), st.integers(16, 64), st.integers(1, 5), st.integers(0, 9))
def test_every_token_of_every_document_is_in_one_row_and_every_item_complete(given, seq_len, places, seed):
    block, places = documents(*given), np.array([places, places + 1])
    rows = pack(block, seq_len, places, 1, seed)
    assert not len(rows.skipped) or all(block.counts[d].any() for d in rows.skipped)
    covered = [np.zeros(n, int) for n in block.lengths]
    for r in range(len(rows.first) - 1):
        cost, items = 0, np.zeros(2, int)
        for document, start, stop in rows.pieces[rows.first[r] : rows.first[r + 1]].tolist():
            assert stop > start  # no piece of <s> alone
            covered[document][start:stop] += 1
            cost += stop - start + 1 + (stop == block.lengths[document])
            own = slice(block.first_cut[document], block.first_cut[document + 1])
            inside = [(0, np.zeros(2, int)), *zip(block.cuts[own].tolist(), block.items[own], strict=True)]
            for (a, n), (b, m) in zip(inside, inside[1:], strict=False):
                if (m > n).any():  # an item lies at a:b
                    assert stop <= a or start >= b or (start <= a and b <= stop)
                    items = items + (m - n if start <= a and b <= stop else 0)
        assert 0 < cost == rows.tokens[r] <= seq_len
        assert items.tolist() == rows.items[r].tolist() and (items <= places).all()
    for document, times in enumerate(covered):
        assert (times == (0 if document in rows.skipped else 1)).all()


@settings(deadline=None)
@given(st.lists(SENTENCES, max_size=20), st.integers(0, 9))
def test_a_document_with_items_is_split_only_if_no_row_could_hold_it(given, seed):
    block, places = documents(*given), np.array([3, 3])
    rows = pack(block, 40, places, 1, seed)
    pieces = np.bincount(rows.pieces[:, 0], minlength=len(given))
    fits = (block.lengths + 2 <= 40) & (block.counts <= places).all(axis=1) & (block.counts.sum(axis=1) > 0)
    assert (pieces[fits] <= 1).all()


def test_a_row_of_text_ends_after_a_sentence_in_its_last_sixteenth_and_inside_one_otherwise():
    #                                <s> and 30 + 31 tokens are 62 of 64; the third sentence begins the next row
    assert pack(documents([30, 31, 20]), 64, np.zeros(2, int), 1, 0).pieces.tolist() == [[0, 0, 61], [0, 61, 81]]
    assert pack(documents([30, 20, 40]), 64, np.zeros(2, int), 1, 0).pieces.tolist() == [[0, 0, 63], [0, 63, 90]]
    # One token fewer than there is room for: </s> alone in a row teaches nothing.
    assert pack(documents([63]), 64, np.zeros(2, int), 1, 0).pieces.tolist() == [[0, 0, 62], [0, 62, 63]]


def test_what_no_row_can_hold_is_left_out():
    caption = ROWS_AN_ITEM * 64
    block = documents([(0, 63), 5], [(0, 62), 5], [(1, 5), caption - 5], [(1, 5), caption - 4], [3])
    assert pack(block, 64, np.array([1, 1]), 1, 0).skipped.tolist() == [0, 3]
    assert pack(block, 64, np.array([1, 0]), 1, 0).skipped.tolist() == [0, 2, 3]  # no places for the second modality


@given(st.lists(st.integers(1, 50), max_size=80))
def test_best_fit_fills_rows_as_well_as_the_textbook_s_one_by_one(sizes):
    rooms, expected = [], 0
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        else:
            expected += 1
        rooms.append((min(fitting) if fitting else 50) - size)
    row = best_fit(np.array(sizes, np.int64), 50)
    assert (np.bincount(row, sizes) <= 50).all() if sizes else True
    assert len(set(row.tolist())) <= expected * 1.1 + 1


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=60), st.integers(1, 8), st.integers(6, 20))
def test_bundles_hold_every_row_once_and_no_more_items_than_they_have_places(items, size, places):
    items, places = np.array(items, np.int64).reshape(-1, 2), np.array([places, 2])
    found = bundles(items, size, places)
    assert sorted(found[found >= 0].tolist()) == list(range(len(items)))
    for bundle in found:
        assert (items[bundle[bundle >= 0]].sum(axis=0) <= places).all()


@pytest.mark.parametrize("kind, text, media", [("captions", 0.98, 0.98), ("pages", 0.99, 0.97)])
def test_rows_and_bundles_are_nearly_full_at_the_size_of_the_paper(kind, text, media):
    draw = np.random.default_rng(0)
    if kind == "captions":
        given = [[(0, 66), int(n)] for n in np.clip(draw.lognormal(2.7, 0.6, 20_000), 1, 300)]
    else:
        given = [
            [each for n in np.clip(draw.lognormal(4.3, 0.7, k), 8, 300) for each in ((0, 66), int(n))]
            for k in 1 + draw.binomial(4, 0.35, 8_000)
        ]
    rows = pack(documents(*given), 2048, np.array([10**6, 0]), 8, 0)
    places = int(np.ceil(rows.items[:, 0].mean() * 8 * 1.01))
    found = bundles(rows.items, 8, np.array([places, 0]))
    assert rows.tokens.sum() / (found.size * 2048) >= text
    assert rows.items.sum() / (len(found) * places) >= media
