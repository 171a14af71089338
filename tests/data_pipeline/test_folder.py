import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipeline import retries
from data_pipeline.documents import DataError, Media, RecordError, Text
from data_pipeline.readers import make_reader
from data_pipeline.wav import wav

WAV = wav(np.arange(9, dtype=np.int16), 8000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a b.wav").write_bytes(WAV)
    return tmp_path


def source(folder, table: str | bytes, name="train.csv", template="{file:audio}Transcript: {text}", **keys):
    (folder / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    config = {"kind": "folder", "path": str(folder), "splits": {"train": name}, "template": template} | keys
    return make_reader(ConfigDict(config), "train")


def test_a_line_of_a_csv_is_a_document(folder):
    table = 'file,text\nclips/a b.wav,"Hello, she said.\nTwice."\n\nclips/a b.wav,"Ä ""quote"""\n'
    for content in (table, b"\xef\xbb\xbf" + table.encode(), table.replace("\n", "\r\n")):
        found = source(folder, content)
        assert len(found) == 2
        text = found[0].parts[1].text.replace("\r\n", "\n")
        assert (found[0].parts[0], text) == (Media("audio", WAV), "Transcript: Hello, she said.\nTwice.")
        assert found[1].parts == (Media("audio", WAV), Text('Transcript: Ä "quote"'))
        assert found[1].where.endswith("train.csv:5")


def test_only_the_learned_columns_are_learned(folder):
    table = "q\ta\tfile\nWho?\tAnn.\tclips/a b.wav\n"
    found = source(folder, table, "train.tsv", "{file:audio}Question: {q} Answer: {a}", learned=["a"])
    assert found[0].parts == (Media("audio", WAV), Text("Question: Who? Answer: ", False), Text("Ann.", True))


def test_a_line_of_json_is_a_document(folder):
    rows = [{"text": "\u2028one", "n": 1234567, "x": 0.5}, {"n": 2, "text": "two", "x": 1e-7, "more": None}]
    table = "\n\n".join(map(json.dumps, rows))
    found = source(folder, table, "train.jsonl", "{text}: {n}, {x}")
    assert [d.parts for d in map(found.__getitem__, range(2))] == [
        (Text("\u2028one: 1234567, 0.5"),),
        (Text("two: 2, 1e-07"),),
    ]
    assert found[1].where.endswith("train.jsonl:3")


def test_files_are_named_from_the_table_and_stay_in_the_folder(folder):
    (folder / "tables").mkdir()
    table = (
        "file,text\n../clips/a b.wav,x\n../../x.wav,x\n/etc/passwd,x\ngs://b/x,x\n../clips,x\n,x\nnone.wav,x\na\0b,x\n"
    )
    found = source(folder, table, "tables/train.csv")
    assert found[0].parts[0] == Media("audio", WAV)
    for i in range(1, len(found)):
        with pytest.raises(RecordError, match=rf"tables/train.csv:{i + 2}: its file '.*' is no file in the folder"):
            found[i]


@pytest.mark.parametrize(
    "name, line, why",
    [
        ("train.csv", "clips/a b.wav", "has 1 cells; the table has 2 columns"),
        ("train.csv", "clips/a b.wav,Hello, you", "has 3 cells; the table has 2 columns"),
        ("train.jsonl", '{"file": "clips/a b.wav"', "is no JSON: Expecting"),
        ("train.jsonl", '["clips/a b.wav", "x"]', "is no JSON object"),
        ("train.jsonl", '{"file": "clips/a b.wav", "txt": "x"}', "'text' is none of file, txt; did you mean txt"),
        ("train.jsonl", '{"file": "clips/a b.wav", "text": null}', "its text is null, no text"),
        ("train.jsonl", '{"file": "clips/a b.wav", "text": true}', "its text is true, no text"),
        ("train.jsonl", b'{"file": "clips/a b.wav", "text": "\xff"}', "is no JSON: 'utf-8' codec"),
        ("train.jsonl", '{"file": "clips/a b.wav", "text": "\\ud800"}', "is no Unicode"),
    ],
)
def test_a_bad_line_costs_itself_and_is_named(folder, name, line, why):
    good = {"train.csv": b"clips/a b.wav,x", "train.jsonl": b'{"file": "clips/a b.wav", "text": "x"}'}[name]
    first = b"file,text" if name == "train.csv" else good
    line = line if isinstance(line, bytes) else line.encode()
    found = source(folder, b"\n".join([first, line, good]), name)
    with pytest.raises(RecordError, match=rf"{name}:2: .*{why}"):
        found[len(found) - 2]
    assert len(found[len(found) - 1].parts) == 2


@pytest.mark.parametrize(
    "table, name, keys, message",
    [
        ("file,txt\n", "train.csv", {}, "column 'text' is none of file, txt; did you mean txt"),
        ("file,text\n", "train.csv", {"template": "{file:audo}"}, "'audo' is none of image, audio; did you mean audio"),
        ("file,text,file\n", "train.csv", {}, "two columns have one name"),
        ("", "train.csv", {}, "train.csv: is empty; its first line names the columns"),
        (b"file,text\na,\xe4\n", "train.csv", {}, "train.csv:2: is no UTF-8"),
        ('file,text\na,b\nc,"d\n', "train.csv", {}, "train.csv:3: unexpected end of data"),
        ("file text\n", "train.txt", {}, "a table ends in .csv, .tsv or .jsonl"),
        ("file,text\n", "train.csv", {"splits": {"train": "absent.csv"}}, "absent.csv: there is no such table"),
        ("file,text\n", "train.csv", {"splits": {"test": "train.csv"}}, "splits names no 'train', only test"),
        ("file,text\n", "train.csv", {"learned": ["file"]}, "learned: 'file' is none of text"),
    ],
)
def test_a_table_or_a_key_that_cannot_be_is_named(folder, table, name, keys, message):
    with pytest.raises(DataError, match=message):
        source(folder, table, name, **keys)


def test_the_fingerprint_knows_the_table_and_how_it_is_read(folder):
    table = "file,text\nclips/a b.wav,x\n"
    prints = [
        source(folder, table).fingerprint,
        source(folder, table, template="{text}").fingerprint,
        source(folder, table, learned=["text"]).fingerprint,
        source(folder, table + "clips/a b.wav,y\n").fingerprint,
    ]
    assert len(set(prints)) == 4
    assert source(folder, table).fingerprint == prints[0]


def test_of_a_failing_disk_the_record_is_innocent(folder, monkeypatch):
    found = source(folder, "file,text\nclips/a b.wav,x\n")
    monkeypatch.setattr(retries, "WAITS", (0,))
    (folder / "clips" / "a b.wav").unlink()
    (folder / "clips" / "a b.wav").symlink_to("a b.wav")  # too many levels of links
    with pytest.raises(OSError, match="a b.wav cannot be read: .*Too many levels"):
        found[0]
