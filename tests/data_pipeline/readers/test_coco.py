"""COCO's captions: its own files and Karpathy's."""

import json

import pytest

from data_pipeline.documents import FileError, Media, Place, RecordError, Text
from data_pipeline.readers.coco import Coco
from tests.data_pipeline.readers.fuzz import survives

NAMES = {9: "COCO_train2014_000000000009.jpg", 25: "COCO_train2014_000000000025.jpg", 42: "COCO_val2014_00000042.jpg"}
OFFICIAL = {
    "info": {"year": 2014},
    "images": [{"id": i, "file_name": name, "height": 480, "width": 640} for i, name in NAMES.items()],
    "licenses": [],
    "annotations": [{"image_id": i, "id": 10 * i + j, "caption": f"{i}, {j}"} for j in range(5) for i in NAMES],
}


def sentences(*texts):
    return [{"tokens": text.lower().split(), "raw": text, "imgid": 0, "sentid": n} for n, text in enumerate(texts)]


KARPATHY = {
    "images": [
        {"filepath": "train2014", "filename": NAMES[9], "split": "train", "sentences": sentences("A.", "B.")},
        {"filepath": "train2014", "filename": NAMES[25], "split": "restval", "sentences": sentences("C.")},
        {"filepath": "val2014", "filename": NAMES[42], "split": "val", "sentences": sentences("D.")},
    ],
    "dataset": "coco",
}


@pytest.fixture
def coco(tmp_path):
    for name in NAMES.values():
        for folder in ("images", "images/train2014", "images/val2014"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(f"{folder}/{name}".encode())
    return tmp_path


def made(folder, content, split="train", **keys):
    (folder / "captions.json").write_text(json.dumps(content))
    return Coco(split, {split: f"{folder}/captions.json"}, images=f"{folder}/images/", **keys)


def read(reader):
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_each_caption_is_a_document_of_its_image(coco):
    found = read(made(coco, OFFICIAL))
    expected = []
    for i, name in NAMES.items():
        data = f"images/{name}".encode()
        image = Media("image", data, Place(f"{coco}/images/{name}", 0, len(data)))
        expected += [(image, Text(f"{i}, {j}")) for j in range(5)]
    assert [d.parts for d in found] == expected
    assert found[0].where == f"{coco}/captions.json:{NAMES[9]}"


@pytest.mark.parametrize("split, texts", [("train", ["A.", "B.", "C."]), ("validation", ["D."]), ("test", [])])
def test_karpathy_says_whose_an_image_is(coco, split, texts):
    found = read(made(coco, KARPATHY, split))
    assert [d.parts[1].text for d in found] == texts
    assert all(d.parts[0].place.path == d.where.replace("captions.json:", "images/") for d in found)


def test_flickr_s_images_lie_in_one_folder(coco):
    images = [{key: value for key, value in image.items() if key != "filepath"} for image in KARPATHY["images"]]
    found = read(made(coco, {"images": images}))
    assert [d.parts[0].data for d in found] == [f"images/{NAMES[i]}".encode() for i in (9, 9, 25)]


def test_what_does_not_fit_is_named(coco):
    (coco / "images" / NAMES[25]).unlink()
    annotations = [
        {"image_id": 9, "caption": None},
        7,
        {"image_id": 3, "caption": "x"},
        {"image_id": 25, "caption": "y"},
    ]
    images = [*OFFICIAL["images"], {"id": "9"}]
    errors = read(made(coco, OFFICIAL | {"annotations": annotations, "images": images}))
    assert all(type(error) is RecordError for error in errors)
    assert [str(error).removeprefix(f"{coco}/captions.json:") for error in errors] == [
        "images[3]: has no id that is a number",
        "annotations[0]: has no caption that is a text",
        "annotations[1]: has no image_id that is a number",
        "annotations[2]: its image_id 3 is none of the images'",
        f"{NAMES[25]}: its image '{NAMES[25]}' is no file in the folder",
    ]


@pytest.mark.parametrize("content", [[], {"images": 3}, {"annotations": []}])
def test_another_file_is_named(coco, content):
    (error,) = read(made(coco, content))
    assert isinstance(error, FileError) and "it is neither COCO's captions nor Karpathy's" in error.why


@pytest.mark.parametrize("content", [OFFICIAL, KARPATHY], ids=["official", "karpathy"])
def test_fuzz(coco, content):
    reader = made(coco, content)
    print(survives(lambda: read(reader), coco / "captions.json"))
