import numpy as np

from data_pipeline.documents import Media, Text
from data_pipeline.rows import Piece, assemble
from data_pipeline.tokenizer import Encoded, Tokenizer
from kosmos_jax.modality import Modality, Table
from tests.data_pipeline.demo_data import image
from tests.inference.conftest import TEXTS


class Ids:
    """The ids that the example is written with: text is 10 and above."""

    bos, pad, eos = 0, 1, 2


def encoded(tokens, starts=(), kinds=None, given=()):
    """Text tokens are learned but for those `given`; items are images unless `kinds` says."""
    learned = [token >= 10 and token not in given for token in tokens] + [True]
    media = tuple(Media(kind, b"x") for kind in kinds or ["image"] * len(starts))
    starts, cuts = np.array(starts, np.int32), np.array([len(tokens)], np.int32)
    return Encoded(np.array(tokens, np.int32), np.array(learned), media, starts, cuts)


IMAGES = Table([image(tokens=2)], {"image": 9})


# Two images with text between (Q = 2), and a text of which the row holds the middle: tokens 2:4 of 10 11 12 13 14.
SUM = encoded([5, 5, 5, 6, 20, 5, 5, 5, 6, 21, 22], [1, 6])
TEXT = encoded([10, 11, 12, 13, 14])
PIECES = [Piece(SUM, 0, 11), Piece(TEXT, 2, 4)]


def test_the_arrays_of_a_row_with_two_images_and_text_isolated():
    row = assemble(PIECES, 18, Ids, IMAGES, isolate=True, first_items={"image": 7})
    assert {name: value.tolist() for name, value in row.items()} == {
        "tokens": [0, 5, 5, 5, 6, 20, 5, 5, 5, 6, 21, 22, 2, 0, 12, 13, 1, 1],
        "targets": [-1, -1, -1, -1, 20, -1, -1, -1, -1, 21, 22, 2, -1, 12, 13, -1, -1, -1],
        "segment_ids": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "positions": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2, 0, 0],
        "slots": [-1, -1, 14, 15, -1, -1, -1, 16, 17, -1, -1, -1, -1, -1, -1, -1, -1, -1],
    }
    assert {value.dtype for value in row.values()} == {np.dtype(np.int32)}


def test_without_isolation_only_segments_and_positions_differ():
    apart = assemble(PIECES, 18, Ids, IMAGES, isolate=True, first_items={"image": 0})
    joined = assemble(PIECES, 18, Ids, IMAGES, isolate=False, first_items={"image": 0})
    assert joined.pop("segment_ids").tolist() == [1] * 16 + [0] * 2
    assert joined.pop("positions").tolist() == list(range(18))
    for name, value in joined.items():
        np.testing.assert_array_equal(value, apart[name])


def test_a_piece_that_could_not_be_read_is_padding_and_keeps_its_number():
    row = assemble([None, PIECES[1]], 6, Ids, IMAGES, isolate=True, first_items={"image": 0})
    assert row["tokens"].tolist() == [0, 12, 13, 1, 1, 1]
    assert row["targets"].tolist() == [12, 13, -1, -1, -1, -1]
    assert row["segment_ids"].tolist() == [2, 2, 2, 0, 0, 0]


def test_a_piece_knows_the_items_between_its_ends():
    assert [list(Piece(SUM, *ends).items) for ends in [(0, 11), (0, 5), (5, 11), (4, 5)]] == [[0, 1], [0], [1], []]


def test_items_of_two_modalities_lie_in_one_table_one_modality_after_the_other():
    # An image (Q = 2), a clip of sound (Q = 3), an image; the row's first image is the batch's third of four.
    document = encoded([5, 5, 5, 6, 7, 7, 7, 7, 8, 20, 5, 5, 5, 6], [1, 5, 11], ["image", "audio", "image"])
    modalities = [image(tokens=2), Modality("audio", 3, (320,), "int16")]
    table = Table(modalities, {"image": 4, "audio": 2})
    row = assemble([Piece(document, 0, 14)], 16, Ids, table, isolate=True, first_items={"image": 2, "audio": 1})
    assert row["slots"].tolist() == [-1, -1, 4, 5, -1, -1, 11, 12, 13, -1, -1, -1, 6, 7, -1, -1]
    assert row["targets"].tolist() == [-1] * 9 + [20] + [-1] * 4 + [2, -1]


def test_text_that_is_given_is_read_and_not_learned():
    tokenizer = Tokenizer.train(TEXTS, 44, modalities=[image(tokens=2)])
    body = tokenizer.encode_document(
        (Media("image", b"x"), Text("The digit?", supervised=False), Text(" seven."), Text(" words", supervised=False))
    )
    question, answer, rest = (tokenizer.encode(text) for text in ("The digit?", " seven.", " words"))
    table = Table(tokenizer.modalities, {"image": 1})
    row = assemble([Piece(body, 0, len(body.tokens))], 40, tokenizer, table, isolate=True, first_items={"image": 0})
    learned = row["targets"][row["targets"] >= 0].tolist()
    # The end is as the last text: given here, so that the model is not taught to stop after what it did not write.
    assert learned == answer
    first = 1 + 4 + len(question)  # <s>, the image, the question: the prediction is made at the token before
    assert row["targets"].tolist() == [-1] * (first - 1) + answer + [-1] * (40 - first + 1 - len(answer))
    answered = tokenizer.encode_document((Text("The digit?", supervised=False), Text(" seven.")))
    row = assemble([Piece(answered, 0, len(answered.tokens))], 40, tokenizer, table, True, {"image": 0})
    assert row["targets"][row["targets"] >= 0].tolist() == [*answer, tokenizer.eos]
