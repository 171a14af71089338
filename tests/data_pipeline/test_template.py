import pytest

from data_pipeline.documents import DataError, Media, RecordError, Text
from data_pipeline.template import Template

RECORD = {"picture": b"PNG", "sound": b"WAV", "question": "Who?", "answer": "A cat.", "hint": ""}
MEDIA = {"picture": "image", "sound": "audio"}


def template(text: str, learned=()):
    return Template(text, learned, lambda name, spec: MEDIA.get(name, ""))


def parts(text: str, learned=(), **changes):
    return template(text, learned).parts(lambda name, kind: (RECORD | changes)[name])


def test_all_text_is_learned_where_nothing_else_is_said():
    assert parts("{picture}Question: {question} Answer: {answer}") == [
        Media("image", b"PNG"),
        Text("Question: Who? Answer: A cat.", supervised=True),
    ]


def test_only_the_learned_fields_are_learned_and_the_rest_is_given():
    assert parts("{picture}Question: {question} Answer: {answer}", ["answer"]) == [
        Media("image", b"PNG"),
        Text("Question: Who? Answer: ", supervised=False),
        Text("A cat.", supervised=True),
    ]
    assert parts("{question}{answer} That is all.", ["question", "answer"]) == [
        Text("Who?A cat.", supervised=True),
        Text(" That is all.", supervised=False),
    ]


def test_media_stand_where_the_template_has_them_and_may_come_twice():
    assert parts("Hear {sound}{hint} and see {picture}{sound}") == [
        *(Text("Hear "), Media("audio", b"WAV"), Text(" and see ")),
        *(Media("image", b"PNG"), Media("audio", b"WAV")),
    ]


def test_doubled_braces_are_braces():
    assert parts('{{"a": "{answer}"}}') == [Text('{"a": "A cat."}')]


@pytest.mark.parametrize(
    "text, learned, message",
    [
        ("{question", (), "expected '}'.*write {{ or }} for a brace"),
        ("a } b", (), "Single '}'.*write {{ or }} for a brace"),
        ("{}", (), "write a field as {name}"),
        ("{answer!r}", (), "write a field as {name}, not as {answer!r}"),
        ("{question}{answer}", ("anser",), "learned: 'anser' is none of question, answer; did you mean answer"),
        ("{picture}{answer}", ("picture",), "learned: 'picture' is none of answer"),
    ],
)
def test_a_template_that_is_none_is_refused(text, learned, message):
    with pytest.raises(DataError, match=message):
        template(text, learned)


def test_a_record_without_its_file_or_without_anything_to_learn_is_no_document():
    with pytest.raises(RecordError, match="its picture is empty"):
        parts("{picture}{answer}", picture=b"")
    with pytest.raises(RecordError, match="nothing in it is learned: answer is empty"):
        parts("{question}{answer}", ["answer"], answer=" \n")
