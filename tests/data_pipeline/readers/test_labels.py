"""A folder a class."""

import json

import pytest

from data_pipeline.documents import DataError, Media, Place, RecordError, Text
from data_pipeline.readers.labels import Labels
from tests.data_pipeline.readers.fuzz import survives

CLASSES = {"n01440764": "tench, Tinca tinca", "golden_retriever": "dog"}


@pytest.fixture
def folder(tmp_path):
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "train" / name / f"{i}.JPEG").write_bytes(f"{name} {i}".encode())
    return tmp_path


def made(folder, pattern="*/*", **keys):
    return Labels("train", dict(train=f"{folder}/train/{pattern}"), **keys)


def read(*args, **keys):
    reader = made(*args, **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_a_folder_is_a_shard_and_its_name_the_label(folder):
    assert made(folder).shards() == (f"{folder}/train/golden_retriever", f"{folder}/train/n01440764")
    found = read(folder)
    path = f"{folder}/train/golden_retriever/0.JPEG"
    image = Media("image", b"golden_retriever 0", Place(path, 0, 18))
    assert found[0].parts == (image, Text("a photo of a golden retriever.")) and found[0].where == path
    assert len(found) == 6


@pytest.mark.parametrize("form", ["dict", "json", "spaces", "tabs"])
def test_names_are_given_or_read(folder, form):
    lines = [(f"{name}\t{label}" if form == "tabs" else f"{name} {label}") + "\r\n" for name, label in CLASSES.items()]
    (folder / "names.txt").write_text("".join(lines))
    (folder / "names.json").write_text(json.dumps(CLASSES))
    names = {"dict": CLASSES, "json": f"{folder}/names.json"}.get(form, f"{folder}/names.txt")
    found = read(folder, names=names, template="{image:image}{folder}: {label}", learned=["label"])
    labels = [d.parts[2].text for d in found]
    assert labels == ["dog"] * 3 + ["tench, Tinca tinca"] * 3
    assert found[-1].parts[1] == Text("n01440764: ", False)


@pytest.mark.parametrize(
    "content, message",
    [
        ("n01440764 tench\n", "names.txt: class 'golden_retriever' is none of n01440764"),
        ("n01440764\n", "names.txt cannot be read: .*; a line is a folder and its label"),
        (None, "names.txt cannot be read: .*No such file"),
    ],
)
def test_names_that_do_not_fit_are_named(folder, content, message):
    if content is not None:
        (folder / "names.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        made(folder, names=f"{folder}/names.txt")


def test_what_is_no_image_is_named(folder):
    (folder / "train" / "n01440764" / "Thumbs.db").write_bytes(b"x")
    (folder / "train" / "n01440764" / ".DS_Store").write_bytes(b"x")
    found = read(folder)
    (error,) = [each for each in found if isinstance(each, RecordError)]
    assert len(found) == 7 and "Thumbs.db: its suffix is none of image: .jpg" in str(error)


def test_fuzz(folder):
    reader = made(folder)
    file = folder / "train" / "n01440764" / "0.JPEG"
    print(survives(lambda: reader.read(reader.shards()[1]), file))
