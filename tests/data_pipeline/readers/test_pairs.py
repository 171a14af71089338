"""Folders of samples, as img2dataset writes them; what a sample is, the tests of tars say."""

import json

import pytest

from data_pipeline.documents import Document, Media, Place, RecordError, Text
from data_pipeline.readers.pairs import Pairs
from tests.data_pipeline.readers.fuzz import survives


@pytest.fixture
def output(tmp_path):
    for i in range(20):
        name = tmp_path / f"{i // 10:05}" / f"{i // 10:05}{i % 10:04}"
        name.parent.mkdir(exist_ok=True)
        name.with_suffix(".jpg").write_bytes(f"pixels {i}".encode())
        name.with_suffix(".txt").write_text(f"Caption {i}")
        name.with_suffix(".json").write_text(json.dumps({"status": "success", "width": i}))
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "00000_stats.json").write_text("{}")
    return tmp_path


def made(folder, **keys):
    return Pairs("train", dict(train=f"{folder}/*/*"), **keys)


def read(reader):
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_a_folder_is_a_shard_of_samples(output):
    assert made(output).shards() == (f"{output}/00000", f"{output}/00001")
    found = read(made(output, template="{image:image}{txt} {json.width}"))
    assert len(found) == 20 and found[13].where == f"{output}/00001/000010003"
    image = Media("image", b"pixels 13", Place(f"{output}/00001/000010003.jpg", 0, 9))
    assert found[13].parts == (image, Text("Caption 13 13"))


def test_what_lacks_its_text_or_is_gone_is_named(output):
    (output / "00000" / "000000000.txt").unlink()
    (output / "00001" / "000010000.json").write_text('{"status": "failed_to_resize", "error_message": "too small"}')
    reader = made(output)
    (output / "00001" / "000010001.jpg").unlink()
    errors = [str(each).removeprefix(f"{output}/") for each in read(reader) if isinstance(each, RecordError)]
    assert errors == [
        "00000/000000000: has no txt, only jpg, json",
        "00001/000010000: its status is failed_to_resize: too small",
        "00001/000010001: its file '000010001.jpg' is no file in the folder",
    ]


def test_a_file_more_changes_the_fingerprint(output):
    before = made(output).fingerprint
    (output / "00001" / "new.txt").write_bytes(b"")
    assert made(output).fingerprint != before


def test_shares_are_of_samples_and_not_of_files(output):
    splits = dict(train=f"{output}/*/*[50%:]", validation=f"{output}/*/*[:50%]")
    found = [{d.where for d in read(Pairs(split, splits))} for split in splits]
    assert len(found[0]) + len(found[1]) == len(found[0] | found[1]) == 20 and min(map(len, found)) > 2
    assert all(isinstance(d, Document) for split in splits for d in read(Pairs(split, splits)))


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_fuzz(output, suffix):
    reader = made(output, template="{jpg}{txt} {json.width}")
    print(suffix, survives(lambda: reader.read(f"{output}/00000"), output / "00000" / f"000000003.{suffix}"))
