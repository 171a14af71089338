"""CSV and TSV with files beside."""

import csv
import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from data_pipeline import retries
from data_pipeline.documents import DataError, Document, FileError, Media, Place, RecordError, Text
from data_pipeline.readers import make_reader
from data_pipeline.wav import wav
from tests.data_pipeline.readers.fuzz import survives

WAV = wav(np.arange(9, dtype=np.int16), 8000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a b.wav").write_bytes(WAV)
    return tmp_path


def reader(folder, table: str | bytes, name="train.csv", template="{file:audio}Transcript: {text}", **keys):
    (folder / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    config = {"kind": "table", "splits": {"train": str(folder / name)}, "template": template} | keys
    return make_reader(ConfigDict(config), "train")


def read(*args, **keys):
    found = reader(*args, **keys)
    return [each for shard in found.shards() for each in found.read(shard)]


def test_a_line_of_a_csv_is_a_document(folder):
    table = 'file,text\nclips/a b.wav,"Hello, she said.\nTwice."\n\nclips/a b.wav,"Ä ""quote"""\n'
    audio = Media("audio", WAV, Place(str(folder / "clips/a b.wav"), 0, len(WAV)))
    for content in (table, b"\xef\xbb\xbf" + table.encode(), table.replace("\n", "\r\n")):
        first, second = read(folder, content)
        text = first.parts[1].text.replace("\r\n", "\n")
        assert (first.parts[0], text) == (audio, "Transcript: Hello, she said.\nTwice.")
        assert second.parts == (audio, Text('Transcript: Ä "quote"'))
        assert second.where.endswith("train.csv:5")


def test_only_the_learned_columns_are_learned(folder):
    table = gzip.compress(b"q\ta\tfile\nWho?\tAnn.\tclips/a b.wav\n")
    (found,) = read(folder, table, "train.tsv.gz", "Question: {q} Answer: {a}", learned=["a"])
    assert found.parts == (Text("Question: Who? Answer: ", False), Text("Ann.", True))


@given(rows=st.lists(st.tuples(st.text(min_size=1), st.text()), max_size=6))
@settings(max_examples=60, deadline=None)
def test_what_the_standard_library_wrote_is_read(tmp_path_factory, rows):
    rows = [tuple(cell.encode(errors="replace").decode() for cell in row) for row in rows]
    path = tmp_path_factory.mktemp("t") / "a.tsv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("a", "b"), *rows])
    found = read(path.parent, path.read_bytes(), "a.tsv", "{a}|{b}")
    assert [document.parts for document in found] == [(Text(f"{a}|{b}"),) for a, b in rows]


def test_files_are_named_from_the_table_and_stay_in_the_folder(folder):
    table = "file,text\nclips/a b.wav,x\n../x.wav,x\n/etc/passwd,x\ngs://b/x,x\nclips,x\n,x\nnone.wav,x\na\0b,x\n"
    first, *errors = read(folder, table)
    assert first.parts[0].data == WAV
    for number, error in enumerate(errors, 3):
        with pytest.raises(RecordError, match=rf"train.csv:{number}: its file '.*' is no file in the folder"):
            raise error
    assert len(errors) == 7


@pytest.mark.parametrize(
    "line, why",
    [
        (b"clips/a b.wav", "has 1 cells; the table has 2 columns"),
        (b"clips/a b.wav,Hello, you", "has 3 cells; the table has 2 columns"),
        (b"clips/a b.wav,\xe4", "is no UTF-8 .byte 0xe4.; save the table as UTF-8"),
        (b'clips/a b.wav,"a" b', "',' expected after '\"'"),
        (b"clips/a b.wav," + b"x" * 2**18, "field larger than field limit"),
    ],
)
def test_a_bad_line_costs_itself_and_is_named(folder, line, why):
    good = b"clips/a b.wav,x"
    first, bad, last = read(folder, b"\n".join([b"file,text", good, line, good]))
    assert first.parts == last.parts and last.where.endswith("train.csv:4")
    with pytest.raises(RecordError, match=rf"train.csv:3: {why}"):
        raise bad


def test_a_quote_that_is_never_closed_is_named_where_it_opens(folder):
    first, bad = read(folder, 'file,text\nclips/a b.wav,x\nclips/a b.wav,"x\nclips/a b.wav,x\n')
    assert isinstance(first, Document) and str(bad).endswith("train.csv:3: unexpected end of data")


@pytest.mark.parametrize(
    "table, name, keys, message",
    [
        ("file,txt\n", "train.csv", {}, "column 'text' is none of file, txt; did you mean txt"),
        ("file,text\n", "train.csv", {"template": "{file:audo}"}, "'audo' is none of image, audio; did you mean audio"),
        ("file,text,file\n", "train.csv", {}, "two columns have one name"),
        ("", "train.csv", {}, "train.csv: is empty; its first line names the columns"),
        ("file,text\n".encode("utf-16"), "train.csv", {}, "train.csv:1: is no UTF-8 .byte 0xff.; save the table as"),
        ("file text\n", "train.txt", {}, "a table ends in .csv or .tsv; .jsonl is of kind jsonl"),
        ("file,text\n", "train.csv", {"splits": {"train": "absent.csv"}}, "absent.csv: there is no such file"),
        ("file,text\n", "train.csv", {"splits": {"test": "train.csv"}}, "splits names no 'train', only test"),
        ("file,text\n", "train.csv", {"learned": ["file"]}, "learned: 'file' is none of text"),
    ],
)
def test_a_table_or_a_key_that_cannot_be_is_named(folder, table, name, keys, message):
    with pytest.raises(DataError, match=message):
        reader(folder, table, name, **keys)


def test_a_later_table_without_a_header_is_passed_over(folder):
    (folder / "b.csv").write_bytes(b"\xff\xfe")
    (folder / "c.csv").write_text("file,txt\nclips/a b.wav,x\n")
    _, second, third = read(folder, "file,text\nclips/a b.wav,x\n", "a.csv", splits={"train": f"{folder}/*.csv"})
    assert isinstance(second, FileError) and "b.csv:1: is no UTF-8" in str(second)
    assert type(third) is RecordError and "c.csv:2: 'text' is none of file, txt; did you mean txt" in str(third)


def test_of_a_failing_disk_the_record_is_innocent(folder, monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0,))
    (folder / "clips" / "a b.wav").unlink()
    (folder / "clips" / "a b.wav").symlink_to("a b.wav")  # too many levels of links
    with pytest.raises(OSError, match="a b.wav cannot be read: .*Too many levels"):
        read(folder, "file,text\nclips/a b.wav,x\n")


def test_fuzz(folder):
    table = "file,text\n" + 'clips/a b.wav,"Hello, ""you"".\nÄ."\n' * 9
    found = reader(folder, table)
    print(survives(lambda: found.read(str(folder / "train.csv")), folder / "train.csv"))
