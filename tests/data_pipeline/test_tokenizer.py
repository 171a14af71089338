import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import DataError, Media
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.modality import TAGS, Modality
from tests.data_pipeline.demo_data import image, parts

TEXTS = [
    "The digit is seven.",
    "A cat sat on the mat. The dog did not!",
    "one two three four five",
    "Why? Because.",
] * 9


def image_of(tokenizer):
    """The ids of an image with Q = 2."""
    return [tokenizer.tag_ids["<image>"]] * 3 + [tokenizer.tag_ids["</image>"]]


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer.train(TEXTS, vocab_size=38, modalities=[image(tokens=2)])


def test_ids_are_fairseq_s_then_pieces_then_tags(tiny):
    assert (tiny.bos, tiny.pad, tiny.eos, tiny.unk) == (0, 1, 2, 3)
    assert tiny.size == 38 + 7
    assert (tiny.mask, tiny.line) == (39, 44)
    assert [tiny.token(i) for i in range(39, 45)] == list(TAGS)
    assert tiny.token(4) == tiny._pieces.id_to_piece(3)


def test_a_model_of_64000_pieces_would_have_the_published_ids(tiny):
    with_grounding = Tokenizer(tiny.model_bytes, kosmos2_tags=True)
    shift = 64_000 - 38
    assert tiny.size + shift == 64_007
    assert {tag: i + shift for tag, i in tiny.tag_ids.items()} == dict(zip(TAGS, range(64_001, 64_007), strict=True))
    assert with_grounding.size + shift == 65_037
    assert with_grounding.token(64_012 - shift) == "<grounding>"
    assert with_grounding.token(65_036 - shift) == "<patch_index_1023>"


def test_tags_of_more_modalities_come_last_and_move_no_other(tiny):
    audio = Modality("audio", 3, (320,), "int16")
    for kosmos2 in (False, True):
        before = Tokenizer(tiny.model_bytes, kosmos2, [image()])
        after = Tokenizer(tiny.model_bytes, kosmos2, [image(), audio])
        assert after.tags == (*before.tags, "<audio>", "</audio>")
        assert after.fingerprint != before.fingerprint
    encoded = after.encode_document(parts(b"A", Media("audio", b"B"), "The cat"))
    sound = [after.tag_ids["<audio>"]] * 4 + [after.tag_ids["</audio>"]]
    assert encoded.tokens[4:9].tolist() == sound and encoded.starts.tolist() == [1, 5]
    with pytest.raises(DataError, match="item of 'audio'; config.model.perception has image"):
        tiny.encode_document((Media("audio", b"B"),))


def test_training_twice_gives_the_same_bytes(tiny):
    again = Tokenizer.train(TEXTS, vocab_size=38)
    assert again.model_bytes == tiny.model_bytes
    assert again.fingerprint == tiny.fingerprint
    assert Tokenizer(tiny.model_bytes, kosmos2_tags=True).fingerprint != tiny.fingerprint


def test_too_large_a_vocabulary_names_the_key():
    with pytest.raises(ValueError, match=r"data.tokenizer.vocab_size=9000 cannot be trained on 4 distinct lines"):
        Tokenizer.train(TEXTS, vocab_size=9000)


def test_a_saved_tokenizer_loads(tiny, tmp_path):
    tiny.save(tmp_path / "t.model")
    assert Tokenizer.load(tmp_path / "t.model").encode("a cat") == tiny.encode("a cat")
    with pytest.raises(DataError, match="data.tokenizer.path"):
        Tokenizer.load(tmp_path / "absent.model")


@given(st.lists(st.text(alphabet="The digit saven.!?", min_size=1, max_size=40), max_size=5))
@settings(max_examples=60, deadline=None)
def test_decode_inverts_encode_up_to_spaces_and_empty_lines(tiny, lines):
    clean = [" ".join(line.split()) for line in lines if line.strip()]
    assert tiny.decode(tiny.encode("\n".join(lines))) == "\n".join(clean)


def test_blank_lines_are_dropped_before_sentencepiece_is_asked():
    tokenizer, asked = Tokenizer.train(TEXTS, vocab_size=38), []
    pieces = tokenizer._pieces

    class Listening:
        def encode(self, text):
            asked.append(text)
            return pieces.encode(text)

    tokenizer._pieces = Listening()
    ids = tokenizer.encode("a cat" + "\n \t\r\n" * 100_000 + "The dog")
    assert asked == ["a cat", "The dog"]
    tokenizer._pieces = pieces
    assert ids == [*tokenizer.encode("a cat"), tokenizer.line, *tokenizer.encode("The dog")]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "x " * 500_000, ". " * 300_000, "x\n" * 100_000, "\0" * 100_000])
def test_no_text_is_too_long_or_too_odd_to_encode(tiny, text):
    encoded = tiny.encode_document(parts(*(text,)))
    assert len(encoded.tokens) == encoded.cuts[-1] > 0
    assert ((0 <= encoded.tokens) & (encoded.tokens < tiny.size)).all()


def test_a_tag_written_in_a_text_stays_text(tiny):
    assert tiny.tag_ids["<image>"] not in tiny.encode("an <image> and </s>")
    assert tiny.eos not in tiny.encode("an <image> and </s>")


def test_decode_skips_tags(tiny):
    ids = [tiny.bos, *image_of(tiny), *tiny.encode("a cat"), tiny.eos, tiny.pad]
    assert tiny.decode(np.array(ids)) == "a cat"


def test_a_document_of_text_may_be_cut_after_each_sentence_and_line(tiny):
    first, second, third = (tiny.encode(text) for text in ("The cat sat.", "The dog did not!", "Why"))
    encoded = tiny.encode_document(parts(*("The cat sat. The dog did not!\n\nWhy\n",)))
    assert encoded.tokens.tolist() == [*first, *second, tiny.line, *third]
    assert encoded.cuts.tolist() == [len(first), len(first) + len(second) + 1, len(encoded.tokens)]
    assert encoded.tokens.dtype == encoded.cuts.dtype == np.int32


def test_encoding_by_sentences_changes_no_id(tiny):
    text = "The cat sat. The dog did not! Why? Because."
    assert tiny.encode(text) == [i + 1 if i else 3 for i in tiny._pieces.encode(text)]


def test_an_image_is_a_tag_q_slots_and_an_end_tag(tiny):
    encoded = tiny.encode_document(parts(*("The cat", b"A", b"B", " sat.\n", b"C")))
    the_cat, sat = tiny.encode("The cat"), tiny.encode("sat.")
    image = image_of(tiny)
    assert encoded.tokens.tolist() == [*the_cat, *image, *image, *sat, tiny.line, *image]
    assert encoded.media == parts(b"A", b"B", b"C")
    starts = encoded.starts.tolist()
    assert starts == [len(the_cat) + 1, len(the_cat) + 5, len(encoded.tokens) - 3]
    inside = {offset for start in starts for offset in range(start, start + 3)}
    assert not inside & set(encoded.cuts.tolist())
    assert encoded.cuts[-1] == len(encoded.tokens)


def test_a_line_that_an_image_ends_is_ended_by_line(tiny):
    encoded = tiny.encode_document(parts(*(b"A", "\nThe cat")))
    assert encoded.tokens.tolist() == [*image_of(tiny), tiny.line, *tiny.encode("The cat")]


def test_an_empty_document_has_no_cuts(tiny):
    encoded = tiny.encode_document(parts(*(" \n ",)))
    assert len(encoded.tokens) == len(encoded.cuts) == 0
