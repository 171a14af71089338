import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import RowError
from data_pipeline.packing import ROWS_AN_ITEM, Packer

SEQ_LEN, IMAGES_PER_ROW, IMAGE = 32, 3, 6

# A document is a list of units: the length of a sentence, or None for an image. None is too long for its images.
documents = st.lists(
    st.lists(st.one_of(st.none(), st.integers(1, 45)), min_size=1, max_size=12), min_size=1, max_size=25
)


def lengths(units):
    cuts = np.cumsum([unit or IMAGE for unit in units]).astype(np.int32)
    images = np.cumsum([unit is None for unit in units]).astype(np.int32)
    return cuts, images[:, None]


def pack(many, seq_len=SEQ_LEN, images_per_row=IMAGES_PER_ROW):
    packer = Packer(seq_len, [images_per_row])
    for i, units in enumerate(many):
        packer.add(i, *lengths(units))
    return packer.finish()


@given(documents)
@settings(max_examples=150, deadline=None)
def test_every_token_of_every_document_stands_in_exactly_one_row(many):
    pieces = sorted(piece for row in pack(many) for piece in row.pieces)
    for i, units in enumerate(many):
        own = [(start, stop) for document, start, stop in pieces if document == i]
        assert [start for start, _ in own] == [0] + [stop for _, stop in own][:-1]
        assert own[-1][1] == lengths(units)[0][-1]
        assert all(start < stop for start, stop in own)


@given(documents)
@settings(max_examples=150, deadline=None)
def test_no_row_holds_more_than_it_can_with_start_and_end_counted(many):
    for row in pack(many):
        tokens, images = 0, 0
        for i, start, stop in row.pieces:
            cuts, counts = lengths(many[i])
            tokens += stop - start + 1 + (stop == cuts[-1])
            images += sum(start < cut <= stop for cut in cuts[np.diff(counts[:, 0], prepend=0) > 0])
        assert tokens == SEQ_LEN - row.room <= SEQ_LEN
        assert images == IMAGES_PER_ROW - row.item_room[0] <= IMAGES_PER_ROW


@given(documents)
@settings(max_examples=150, deadline=None)
def test_no_piece_ends_inside_an_image_or_inside_a_sentence_that_a_row_can_hold(many):
    for row in pack(many):
        for i, _, stop in row.pieces:
            cuts, _ = lengths(many[i])
            if stop not in cuts:
                unit = np.searchsorted(cuts, stop)
                assert many[i][unit] is not None
                assert many[i][unit] > SEQ_LEN - 2


@given(documents)
@settings(max_examples=100, deadline=None)
def test_a_document_with_images_that_fits_a_row_is_whole(many):
    rows = pack(many)
    for i, units in enumerate(many):
        cuts, images = lengths(units)
        if 0 < images[-1, 0] <= IMAGES_PER_ROW and cuts[-1] + 2 <= SEQ_LEN:
            assert [p for row in rows for p in row.pieces if p[0] == i] == [(i, 0, cuts[-1])]


def test_waiting_documents_fill_rows_exactly_where_they_can():
    rows = pack([[None, n - 8] for n in (20, 12, 20, 12, 16, 16)])
    assert [row.room for row in rows] == [0, 0, 0]


def test_an_image_that_no_row_can_hold_is_an_error_with_the_numbers():
    with pytest.raises(RowError, match="it takes 8 tokens, data.seq_len is 7"):
        pack([[None, 3]], seq_len=7)
    with pytest.raises(RowError, match=r"per_row is \[0\]"):
        pack([[None, 3]], images_per_row=0)


def test_a_document_may_have_sixteen_rows_of_tokens_for_each_image_and_text_any_number():
    fits = ROWS_AN_ITEM * SEQ_LEN - IMAGE
    assert len(pack([[None, fits]])) > ROWS_AN_ITEM
    assert len(pack([[None, fits + 1, None, fits - 1]])) > 2 * ROWS_AN_ITEM
    assert len(pack([[100 * fits]])) > 100 * ROWS_AN_ITEM
    packer = Packer(SEQ_LEN, [IMAGES_PER_ROW])
    with pytest.raises(
        RowError, match="518 tokens and 1 item.s. of media; the limit is 16 rows of 32 tokens for each item"
    ):
        packer.add(0, *lengths([None, fits + 6]))
    assert packer.finish() == []


# With two modalities: a unit is a sentence's length, or the modality of an item.
mixed = st.lists(
    st.lists(st.one_of(st.sampled_from("ab"), st.integers(1, 20)), min_size=1, max_size=8), min_size=1, max_size=25
)


@given(mixed)
@settings(max_examples=100, deadline=None)
def test_rows_with_limits_for_two_modalities_keep_both_and_split_no_document_that_fits(many):
    limits, packer, taken = np.array([2, 1]), Packer(SEQ_LEN, [2, 1]), {}
    for i, units in enumerate(many):
        cuts = np.cumsum([IMAGE if isinstance(unit, str) else unit for unit in units]).astype(np.int32)
        items = np.cumsum([[unit == "a", unit == "b"] for unit in units], axis=0).astype(np.int32)
        packer.add(i, cuts, items)
        taken[i] = (cuts, items)
    rows = packer.finish()
    for row in rows:
        used = np.zeros(2, int)
        for i, start, stop in row.pieces:
            cuts, items = taken[i]
            before = np.concatenate([[[0, 0]], items])
            used += before[np.searchsorted(cuts, stop, "right")] - before[np.searchsorted(cuts, start, "right")]
        assert (used == limits - row.item_room).all() and (used <= limits).all() and row.room >= 0
    for i, (cuts, items) in taken.items():
        own = [piece for row in rows for piece in row.pieces if piece[0] == i]
        assert sum(stop - start for _, start, stop in own) == cuts[-1]
        if items[-1].any() and (items[-1] <= limits).all() and cuts[-1] + 2 <= SEQ_LEN:
            assert own == [(i, 0, cuts[-1])]
