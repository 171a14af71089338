"""JSON Lines, plain and compressed, whole and damaged."""

import bz2
import gzip
import json
import lzma

import pytest
from backports import zstd

from data_pipeline.documents import DataError, Document, FileError, Media, Place, RecordError, Text
from data_pipeline.readers.jsonl import Jsonl

LINES = b"".join(json.dumps({"text": f"Document {i}.", "meta": {"n": i}}).encode() + b"\n" for i in range(500))
COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    # Two frames, as pzstd and the shards of The Pile have them.
    ".zst": lambda data: zstd.compress(data[: len(data) // 2]) + zstd.compress(data[len(data) // 2 :]),
}


def read(path, **keys):
    reader = Jsonl("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_every_line_is_a_document_whatever_compresses_it(tmp_path, suffix):
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(COMPRESSORS[suffix](LINES))
    found = read(file, template="{meta.n}: {text}")
    assert [document.parts for document in found] == [(Text(f"{i}: Document {i}."),) for i in range(500)]
    assert found[7].where == f"{file}:8"


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSORS if suffix])
def test_a_file_that_was_cut_off_gives_what_it_has_and_says_so(tmp_path, suffix):
    file = tmp_path / f"a.jsonl{suffix}"
    # Text that hardly compresses, or all of it would stand in one block.
    lines = b"".join(json.dumps({"text": str(hash((i, j)))}).encode() + b"\n" for i in range(900) for j in range(40))
    compressed = COMPRESSORS[suffix](lines)
    file.write_bytes(compressed[: len(compressed) * 2 // 3])
    *before, last = read(file)
    assert isinstance(last, FileError) and last.where == str(file)
    assert all(isinstance(each, Document | RecordError) for each in before)
    assert suffix == ".bz2" or sum(isinstance(each, Document) for each in before) > 1000


def test_what_is_no_object_with_the_template_s_text_is_named_and_left_out(tmp_path):
    file = tmp_path / "a.jsonl"
    bad = [b"{", b"[1]", b'{"text": null}', b'{"txt": "x"}', b'{"text": "\xff"}', b'{"text": "\\ud800"}']
    file.write_bytes(b"\n".join([b'{"text": "good"}', *bad, b"   ", b'{"text": 7}']))
    first, *errors, last = read(file)
    assert first.parts == (Text("good"),) and last.parts == (Text("7"),)
    assert [error.where for error in errors] == [f"{file}:{n}" for n in range(2, 8)]
    assert "did you mean" in str(errors[3]) or "text" in str(errors[3])


def test_files_beside_the_lines_are_media_and_others_are_not(tmp_path):
    (tmp_path / "a.png").write_bytes(b"pixels")
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a.jsonl"
    (tmp_path / "in" / "b.png").write_bytes(b"more")
    names = ["b.png", "../a.png", "/etc/passwd", "", "c.png", "b\0.png", "."]
    file.write_text("\n".join(json.dumps({"file": name, "text": "T"}) for name in names))
    first, *errors = read(file, template="{file:image}{text}")
    place = Place(str(tmp_path / "in" / "b.png"), 0, 4)
    assert first.parts == (Media("image", b"more", place), Text("T"))
    assert len(errors) == len(names) - 1 and all("is no file in the folder" in error.why for error in errors)


def test_shares_by_name_are_disjoint_and_complete(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    splits = dict(train=f"{tmp_path}/*.jsonl[10%:]", validation=f"{tmp_path}/*.jsonl[:10%]")
    train, validation = ([d.where for d in Jsonl(s, splits).read(f"{tmp_path}/a.jsonl")] for s in splits)
    assert not set(train) & set(validation) and len(train) + len(validation) == 500 and 20 < len(validation) < 90


def test_numbers_in_braces_are_files_and_a_missing_one_is_named(tmp_path):
    for i in range(3):
        (tmp_path / f"{i:03}.jsonl").write_bytes(LINES)
    assert len(Jsonl("train", dict(train=f"{tmp_path}/{{000..002}}.jsonl")).shards()) == 3
    with pytest.raises(DataError, match="003.jsonl: there is no such file"):
        Jsonl("train", dict(train=f"{tmp_path}/{{000..003}}.jsonl"))
