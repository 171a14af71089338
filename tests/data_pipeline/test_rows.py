import numpy as np

from data_pipeline.rows import Piece, assemble
from data_pipeline.tokenizer import Encoded


class Ids:
    """The ids that the example is written with: text is 10 and above."""

    bos, pad, eos, image, image_end = 0, 1, 2, 5, 6


def encoded(tokens, image_starts=()):
    images = tuple(b"x" for _ in image_starts)
    return Encoded(
        np.array(tokens, np.int32), images, np.array(image_starts, np.int32), np.array([len(tokens)], np.int32)
    )


# Two images with text between (Q = 2), and a text of which the row holds the middle: tokens 2:4 of 10 11 12 13 14.
SUM = encoded([5, 5, 5, 6, 20, 5, 5, 5, 6, 21, 22], [1, 6])
TEXT = encoded([10, 11, 12, 13, 14])
PIECES = [Piece(SUM, 0, 11), Piece(TEXT, 2, 4)]


def test_the_arrays_of_a_row_with_two_images_and_text_isolated():
    row = assemble(PIECES, 18, Ids, image_tokens=2, isolate=True, first_image=7)
    assert {name: value.tolist() for name, value in row.items()} == {
        "tokens": [0, 5, 5, 5, 6, 20, 5, 5, 5, 6, 21, 22, 2, 0, 12, 13, 1, 1],
        "targets": [-1, -1, -1, -1, 20, -1, -1, -1, -1, 21, 22, 2, -1, 12, 13, -1, -1, -1],
        "segment_ids": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "positions": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2, 0, 0],
        "slots": [-1, -1, 14, 15, -1, -1, -1, 16, 17, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    }
    assert {value.dtype for value in row.values()} == {np.dtype(np.int32)}


def test_without_isolation_only_segments_and_positions_differ():
    apart = assemble(PIECES, 18, Ids, image_tokens=2, isolate=True, first_image=0)
    joined = assemble(PIECES, 18, Ids, image_tokens=2, isolate=False, first_image=0)
    assert joined.pop("segment_ids").tolist() == [1] * 16 + [0] * 2
    assert joined.pop("positions").tolist() == list(range(18))
    for name, value in joined.items():
        np.testing.assert_array_equal(value, apart[name])


def test_a_piece_that_could_not_be_read_is_padding_and_keeps_its_number():
    row = assemble([None, PIECES[1]], 6, Ids, image_tokens=2, isolate=True, first_image=0)
    assert row["tokens"].tolist() == [0, 12, 13, 1, 1, 1]
    assert row["targets"].tolist() == [12, 13, -1, -1, -1, -1]
    assert row["segment_ids"].tolist() == [2, 2, 2, 0, 0, 0]


def test_a_piece_knows_the_images_between_its_ends():
    assert [list(Piece(SUM, *ends).images) for ends in [(0, 11), (0, 5), (5, 11), (4, 5)]] == [[0, 1], [0], [1], []]
