"""A batch of rows against a plain rendering of one piece after another."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.rows import Pieces, assemble, spans


class Ids:
    """The ids that the examples are written with: text is 10 and above."""

    bos, pad, eos = 0, 1, 2


def batch(*rows):
    """`Pieces` of rows of (tokens, ends, given spans, items as (start, Q, slot)); None is a piece that is missing."""
    columns = {name: [] for name in ("row", "segment", "tokens", "length", "ends")}
    given_spans, items = [], []
    for r, row in enumerate(rows):
        for segment, piece in enumerate(row, 1):
            if piece is None:
                continue
            tokens, ends, own_given, own_items = (*piece, (), ())[:4]
            number = len(columns["row"])
            given_spans += [(number, *span) for span in own_given]
            items += [(number, *item) for item in own_items]
            for name, value in zip(columns, (r, segment, np.array(tokens), len(tokens), ends), strict=True):
                columns[name].append(value)
    arrays = {name: np.array(columns[name], np.int64) for name in ("row", "segment", "length")}
    flat = [np.array(each, np.int64).reshape(-1, n) for each, n in ((given_spans, 3), (items, 4))]
    return Pieces(
        **arrays, tokens=columns["tokens"], ends=np.array(columns["ends"], bool), given=flat[0], items=flat[1]
    )


# Two images with text between (Q = 2), and a text of which the row holds the middle: tokens 2:4 of 10 11 12 13 14.
SUM = ([5, 5, 5, 6, 20, 5, 5, 5, 6, 21, 22], True, (), [(1, 2, 14), (6, 2, 16)])
TEXT = ([12, 13], False)


def test_the_arrays_of_a_row_with_two_images_and_text_isolated():
    arrays = assemble(batch([SUM, TEXT]), 1, 18, Ids, isolate=True)
    assert {name: value[0].tolist() for name, value in arrays.items()} == {
        "tokens": [0, 5, 5, 5, 6, 20, 5, 5, 5, 6, 21, 22, 2, 0, 12, 13, 1, 1],
        "targets": [-1, -1, -1, -1, 20, -1, -1, -1, -1, 21, 22, 2, -1, 12, 13, -1, -1, -1],
        "segment_ids": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "positions": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2, 0, 0],
        "slots": [-1, -1, 14, 15, -1, -1, -1, 16, 17, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    }
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.int32)}


def test_without_isolation_only_segments_and_positions_differ():
    apart, joined = (assemble(batch([SUM, TEXT]), 1, 18, Ids, isolate) for isolate in (True, False))
    assert joined.pop("segment_ids").tolist() == [[1] * 16 + [0] * 2]
    assert joined.pop("positions").tolist() == [list(range(18))]
    for name, value in joined.items():
        np.testing.assert_array_equal(value, apart[name])


def test_a_piece_that_is_missing_is_padding_and_keeps_its_number():
    row = assemble(batch([None, TEXT]), 1, 6, Ids, isolate=True)
    assert row["tokens"].tolist() == [[0, 12, 13, 1, 1, 1]]
    assert row["targets"].tolist() == [[12, 13, -1, -1, -1, -1]]
    assert row["segment_ids"].tolist() == [[2, 2, 2, 0, 0, 0]]


def test_items_of_two_modalities_have_their_own_numbers_of_slots():
    document = ([5, 5, 5, 6, 7, 7, 7, 7, 8, 20, 5, 5, 5, 6], True, (), [(1, 2, 4), (5, 3, 11), (11, 2, 6)])
    row = assemble(batch([document]), 1, 16, Ids, isolate=True)
    assert row["slots"].tolist() == [[-1, -1, 4, 5, -1, -1, 11, 12, 13, -1, -1, -1, 6, 7, -1, -1]]
    assert row["targets"].tolist() == [[-1] * 9 + [20] + [-1] * 4 + [2, -1]]


def test_text_that_is_given_is_read_and_not_learned_and_neither_is_the_end_after_it():
    question, answer = [10, 11, 12], [20, 21]
    row = assemble(batch([(question + answer, True, [(0, 3)])]), 1, 8, Ids, isolate=True)
    assert row["targets"].tolist() == [[-1, -1, -1, 20, 21, 2, -1, -1]]
    row = assemble(batch([(answer + question, True, [(2, 6)])]), 1, 8, Ids, isolate=True)
    assert row["targets"].tolist() == [[20, 21, -1, -1, -1, -1, -1, -1]]


PIECES = st.tuples(st.lists(st.integers(10, 99), min_size=1, max_size=7), st.booleans())


@given(st.lists(st.lists(PIECES | st.none(), max_size=4), min_size=1, max_size=5), st.booleans())
def test_many_rows_at_once_are_what_they_are_one_by_one(rows, isolate):
    together = assemble(batch(*rows), len(rows), 40, Ids, isolate)
    for r, row in enumerate(rows):
        tokens, targets, segments = [1] * 40, [-1] * 40, [0] * 40
        positions, at = [0] * 40 if isolate else list(range(40)), 0
        for segment, piece in enumerate(row, 1):
            if piece:
                body = [0, *piece[0], *([2] if piece[1] else [])]
                for i, token in enumerate(body):
                    tokens[at + i], segments[at + i] = token, segment if isolate else 1
                    positions[at + i] = i if isolate else at + i
                    targets[at + i] = body[i + 1] if i + 1 < len(body) else -1
                at += len(body)
        expected = dict(tokens=tokens, targets=targets, segment_ids=segments, positions=positions, slots=[-1] * 40)
        assert {name: value[r].tolist() for name, value in together.items()} == expected


def test_spans_lie_one_after_another():
    assert spans(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
