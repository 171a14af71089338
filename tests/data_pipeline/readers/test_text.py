"""Plain text by the file, the block and the line."""

import bz2
import gzip
import lzma
import random
import tracemalloc

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import DataError, Document, FileError, RecordError, Text
from data_pipeline.readers.text import UNITS, PlainText
from tests.data_pipeline.readers.fuzz import survives

POEM = "\ufeffOne,\r\ntwo.\r\n\r\n \t\r\n  Threë,\r\nfour.\r\n"


def read(path, **keys):
    reader = PlainText("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


@pytest.mark.parametrize(
    "unit, expected",
    [
        ("file", {"": POEM[1:-2]}),
        ("block", {":1": "One,\r\ntwo.", ":5": "  Threë,\r\nfour."}),
        ("line", {":1": "One,", ":2": "two.", ":5": "  Threë,", ":6": "four."}),
    ],
)
def test_a_document_is_a_file_or_a_block_or_a_line(tmp_path, unit, expected):
    for name, data in {"a.txt": POEM.encode(), "a.txt.gz": gzip.compress(POEM.encode())}.items():
        (tmp_path / name).write_bytes(data)
        found = {d.where.removeprefix(f"{tmp_path}/{name}"): d.parts for d in read(tmp_path / name, unit=unit)}
        assert found == {where: (Text(text),) for where, text in expected.items()}


@given(lines=st.lists(st.sampled_from(["", " ", "a", "b c", "\x0b", "\u2028d", "e\rf"]), max_size=12))
@settings(max_examples=100, deadline=None)
def test_lines_and_blocks_have_the_same_text(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_bytes("\n".join(lines).encode())
    blocks = [line for d in read(path, unit="block") for line in d.parts[0].text.split("\n")]
    assert blocks == [line for line in lines if line.strip(" \x0b")]
    assert blocks == [d.parts[0].text for d in read(path, unit="line")]


@pytest.mark.parametrize("unit, where", [("file", ""), ("block", ":4"), ("line", ":5")])
def test_what_is_no_utf8_is_named_with_its_byte(tmp_path, unit, where):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\nthree\nfo\xfcr\n\nfive")
    found = read(tmp_path / "a.txt", unit=unit)
    (error,) = [each for each in found if isinstance(each, RecordError)]
    byte = {"file": 17, "block": 8, "line": 2}[unit]
    assert str(error) == f"{tmp_path}/a.txt{where}: is no UTF-8 (invalid start byte at byte {byte})"
    assert len(found) == {"file": 1, "block": 3, "line": 5}[unit]


def test_an_empty_file_and_a_unit_that_there_is_not_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b" \n\n")
    (error,) = read(tmp_path / "a.txt")
    assert error.why == "is empty" and read(tmp_path / "a.txt", unit="line") == []
    with pytest.raises(DataError, match="unit 'page' is none of file, block, line"):
        read(tmp_path / "a.txt", unit="page")


def test_a_file_that_was_cut_off_gives_what_it_has(tmp_path):
    data = gzip.compress("".join(f"{hash((i,))}\n\n" for i in range(20_000)).encode())
    (tmp_path / "a.txt.gz").write_bytes(data[: len(data) // 2])
    *before, last = read(tmp_path / "a.txt.gz", unit="block")
    assert isinstance(last, FileError) and len(before) > 5000 and all(isinstance(each, Document) for each in before)


@pytest.mark.parametrize("unit", ["block", "line"])
def test_a_file_is_not_held_in_memory(tmp_path, unit):
    (tmp_path / "a.txt").write_bytes(b"A line of text.\n\n" * 400_000)
    reader = PlainText("train", dict(train=f"{tmp_path}/a.txt"), unit=unit)
    tracemalloc.start()
    try:
        for number, _ in enumerate(reader.read(f"{tmp_path}/a.txt")):
            if number == 20_000:
                break
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("unit", UNITS)
def test_fuzz(tmp_path, unit):
    file = tmp_path / "a.txt"
    file.write_bytes((POEM * 5).encode())
    reader = PlainText("train", dict(train=str(file)), unit=unit)
    print(unit, survives(lambda: reader.read(str(file)), file))


@pytest.mark.parametrize(
    "suffix, packed",
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd.compress)],
)
@pytest.mark.parametrize("unit", ["file", "line"])
def test_fuzz_compressed(tmp_path, suffix, packed, unit):
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(packed(random.Random(0).randbytes(1500).hex(" ", 20).replace(" ", "\n").encode()))
    reader = PlainText("train", dict(train=str(file)), unit=unit)
    print(suffix, unit, survives(lambda: reader.read(str(file)), file))
