import pytest
from ml_collections import ConfigDict

from data_pipeline import builtin
from data_pipeline.builtin import Captions, DigitDocuments, Pydoc
from data_pipeline.documents import Media, Text
from data_pipeline.readers import SPLITS, keys, make_reader


def test_no_digit_is_in_two_splits_and_none_is_left_out():
    from sklearn.datasets import load_digits

    pictures = {split: builtin.digits(split)[0] for split in SPLITS}
    assert {split: len(p) for split, p in pictures.items()} == {"train": 1297, "validation": 200, "test": 300}
    distinct = {split: set(p) for split, p in pictures.items()}
    assert not distinct["train"] & (distinct["validation"] | distinct["test"])
    assert not distinct["validation"] & distinct["test"]
    assert sum(map(len, pictures.values())) == len(load_digits().images)


def test_no_paragraph_of_the_held_out_text_is_in_the_training_text():
    paragraphs = {
        split: [p for i in range(len(s)) for p in s[i].parts[0].text.split("\n")] for split, s in _pydoc().items()
    }
    train = set(paragraphs["train"])
    for split in ("validation", "test"):
        assert paragraphs[split]
        assert not train & set(paragraphs[split])


def _pydoc():
    return {split: Pydoc(split) for split in SPLITS}


def test_prose_is_sentences_without_underlines_wrapping_or_code():
    topic = '\nLambdas\n*******\n\n   lambda_expr ::= "lambda" ":" expression\n'
    topic += "\nLambda expressions are\nanonymous functions.\n"
    topic += "\n   def f():\n       return 1\n\n* A point of a list.\n"
    assert builtin.prose(topic) == ["Lambdas.", "Lambda expressions are anonymous functions.", "A point of a list."]


def test_a_caption_is_an_image_and_a_sentence_that_names_it():
    source = Captions("test")
    images, labels = builtin.digits("test")
    for i in range(0, len(source), 7):
        image, text = source[i].parts
        assert image == Media("image", images[i // len(builtin.CAPTIONS)])
        assert text.supervised and text.text.endswith(f" {builtin.WORDS[labels[i // len(builtin.CAPTIONS)]]}.")
    assert any(text.startswith(builtin.CAPTION_PROMPT) for text in builtin.CAPTIONS)


def test_interleaved_documents_say_what_is_true_of_their_images():
    images, labels = builtin.digits("validation")
    label_of = dict(zip(images, labels, strict=True))
    source, kinds = DigitDocuments("validation"), set()
    for i in range(200):
        parts = source[i].parts
        shown = [label_of[part.data] for part in parts if isinstance(part, Media)]
        texts = [part.text for part in parts if isinstance(part, Text)]
        if texts[0] == " plus ":
            kinds.add("sum")
            assert texts[1] == f" equals {builtin.WORDS[sum(shown)]}."
        else:
            styles = {s for s, name in builtin.LABELS.items() if texts == [f" {name(digit)}." for digit in shown]}
            assert styles
            kinds |= styles
    assert kinds == {"sum", *builtin.LABELS}


def test_a_prompt_is_the_beginning_of_the_document_that_answers_it():
    a, b = Media("image", b"A"), Media("image", b"B")
    assert builtin.sum_prompt(b"A", b"B") == (a, Text(" plus "), b, Text(" equals"))
    assert builtin.sum_prompt(b"A", b"B", " nine.") == (a, Text(" plus "), b, Text(" equals nine."))
    assert builtin.list_prompt([(b"A", 3)], "word", b"B") == (a, Text(" three."), b)
    assert builtin.list_prompt([(b"A", 3), (b"B", 4)], "parity") == (a, Text(" odd."), b, Text(" even."))


@pytest.mark.parametrize("kind", [Captions, DigitDocuments, Pydoc])
def test_a_source_is_the_same_each_time_and_its_fingerprint_tells_splits_apart(kind):
    assert kind("train")[3] == kind("train")[3]
    assert kind("train").fingerprint == kind("train").fingerprint
    assert len({kind(split).fingerprint for split in SPLITS}) == 3


def test_an_unknown_kind_or_split_is_named():
    with pytest.raises(ValueError, match="'laion' is none of pydoc, digits, digit_documents, .*, tfds"):
        make_reader(ConfigDict({"kind": "laion"}), "train")
    with pytest.raises(ValueError, match="split 'dev'"):
        make_reader(ConfigDict({"kind": "pydoc"}), "dev")


def test_a_kind_says_its_keys_and_misses_those_it_needs():
    assert keys("pydoc") == {}
    assert [key for key, needed in keys("tfds").items() if needed] == ["name", "splits"]
    assert keys("tfds")["interleaved"] is False
    with pytest.raises(ValueError, match="kind tfds needs name, splits"):
        make_reader(ConfigDict({"kind": "tfds", "template": "{text}"}), "train")
