"""Our own JSON Lines of parts: its form, and what is none of it."""

import base64
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Document, Media, Place, RecordError, Text
from data_pipeline.readers.parts import Parts
from tests.data_pipeline.readers.fuzz import survives


def read(path):
    reader = Parts("train", dict(train=str(path)))
    return [each for shard in reader.shards() for each in reader.read(shard)]


def written(path, records):
    text = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"pixels")
    (tmp_path / "b.wav").write_bytes(b"sound")
    (tmp_path / "empty.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_the_form(folder, name):
    encoded = base64.b64encode(b"more").decode()
    dialogue = [
        "A: ",
        {"image": "in/a.jpg"},
        {"text": " Q?", "learned": False},
        {"text": " A.", "learned": True},
        " B.",
    ]
    sound = [{"audio": "b.wav"}, {"image_base64": encoded}]
    first, second = read(written(folder / name, [{"parts": dialogue, "id": 3}, "", {"parts": sound}]))
    image = Media("image", b"pixels", Place(f"{folder}/in/a.jpg", 0, 6))
    assert first.parts == (Text("A: "), image, Text(" Q?", False), Text(" A. B."))
    assert second.parts == (Media("audio", b"sound", Place(f"{folder}/b.wav", 0, 5)), Media("image", b"more"))
    assert second.where == f"{folder / name}:3"


@pytest.mark.parametrize(
    "record, why",
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ({}, "has no list `parts`, only nothing"),
        ({"part": ["a"]}, "has no list `parts`, only part"),
        ({"parts": "a"}, "has no list `parts`"),
        ({"parts": []}, "has no list `parts`"),
        ({"parts": [1]}, "part 0: is neither a text nor an object"),
        ({"parts": ["a", None]}, "part 1: is neither"),
        ({"parts": [{}]}, "part 0: has no key, not one of text, image, audio"),
        ({"parts": [{"text": "a", "image": "b"}]}, "part 0: has text, image, not one of"),
        ({"parts": [{"imgae": "b"}]}, "did you mean image?"),
        ({"parts": [{"image": "in/a.jpg", "learned": False}]}, "part 0: has image, learned, not one of"),
        ({"parts": [{"text": None}]}, "part 0: its text is NoneType, no string"),
        ({"parts": [{"text": "a", "learned": 0}]}, "its learned is 0, neither true nor false"),
        ({"parts": [{"image": "no.jpg"}]}, "part 0: its image 'no.jpg' is no file in the folder"),
        ({"parts": [{"image": "../a.jpg"}]}, "is no file in the folder"),
        ({"parts": [{"image": "empty.png"}]}, "part 0: its image is empty"),
        ({"parts": [{"image_base64": "é"}]}, "part 0: its image_base64 is empty or no base64"),
        ({"parts": [{"image_base64": "abcde"}]}, "is empty or no base64"),
        ({"parts": [" ", ""]}, "is empty"),
        ({"parts": [{"image": "in/a.jpg"}, {"text": "a", "learned": False}]}, "has no text that is learned"),
        ('{"parts": ["\\ud800"]}', "is no JSON"),
    ],
)
def test_what_is_not_of_the_form_costs_its_line_and_is_named(folder, record, why):
    path = written(folder / "a.jsonl", [record, {"parts": ["good"]}])
    error, good = read(path)
    assert type(error) is RecordError and error.where == f"{path}:1" and why in error.why
    assert good.parts == (Text("good"),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["parts", "text", "image", "learned", "image_base64"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_document_or_an_error(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    (found,) = read(written(path, [{"parts": value}]))
    assert isinstance(found, Document | RecordError)


def test_fuzz(folder):
    parts = ["A ", {"image": "in/a.jpg"}, {"text": "b", "learned": False}, {"audio_base64": "c291bmQ="}]
    file = written(folder / "a.jsonl", [{"parts": parts[:n]} for n in (1, 2, 3, 4)] * 3)
    reader = Parts("train", dict(train=str(file)))
    print(survives(lambda: reader.read(str(file)), file))
