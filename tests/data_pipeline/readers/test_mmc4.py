"""MMC4: the published form, images in folders, zips and records; and what people have that is broken."""

import base64
import gzip
import io
import json
import logging
import random
import zipfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from data_pipeline.documents import DataError, Document, FileError, Media, RecordError, Text
from data_pipeline.files import opened
from data_pipeline.readers.mmc4 import Mmc4
from tests.data_pipeline.readers.fuzz import survives

SAMPLE = Path(__file__).parents[3] / "../shared/data/mmc4_sample/docs_sample.jsonl"


def png(n):
    file = io.BytesIO()
    Image.new("RGB", (80, 64), (n, n, n)).save(file, "PNG")
    return file.getvalue()


IMAGES = {f"{n}.png": png(n) for n in range(4)}


def record(texts="A. B. C. D.", matches=((2, 0.3), (1, 0.2), (2, 0.4)), **more):
    images = [
        {"image_name": f"{n}.png", "raw_url": "http://h", "matched_text_index": index, "matched_sim": similarity}
        for n, (index, similarity) in enumerate(matches)
    ]
    return {"url": "http://h/", "text_list": texts.split(), "image_info": images, **more}


def read(path, **keys):
    reader = Mmc4("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


def written(path, records):
    data = "\n".join(map(json.dumps, records)).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def shown(document):
    """Texts, and numbers of images."""
    numbers = {data: int(name[0]) for name, data in IMAGES.items()}
    return [part.text if isinstance(part, Text) else numbers[part.data] for part in document.parts]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, data in IMAGES.items():
        (tmp_path / "images" / name).write_bytes(data)
    for method, name in (zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "deflated"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", method) as archive:
            for image, data in IMAGES.items():
                archive.writestr(f"shard/{image}", data)
    return tmp_path


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zip"])
def test_images_stand_before_the_sentences_that_they_match(folder, name):
    (found,) = read(written(folder / name, [record()]), images=f"{folder}/images")
    assert shown(found) == ["A.", 1, "B.", 0, 2, "C. D."] and found.where == f"{folder / name}:1"


def test_the_first_sentence_and_the_last_and_empty_ones(folder):
    documents = [record(matches=[(0, 1), (3, 1)]), record("A.", [(0, 1)]), record("", [])]
    documents[1]["text_list"] = [" ", "", "A. "]
    first, second, third = read(written(folder / "d.jsonl", documents), images=f"{folder}/images")
    assert shown(first) == [0, "A. B. C.", 1, "D."] and shown(second) == [0, "A."] and shown(third) == []


@pytest.mark.parametrize("where", ["images", "stored.zip", "deflated.zip", "*ed.zip", "{name}ed.zip", ""])
def test_where_images_are(folder, where):
    path = written((folder / "images" if not where else folder) / "stor.jsonl", [record()])
    (found,) = read(path, images=f"{folder}/{where}" if where else "")
    assert shown(found) == ["A.", 1, "B.", 0, 2, "C. D."]
    for part in found.parts:
        if isinstance(part, Media) and part.place:
            data = opened(part.place.path).read()
            assert data[part.place.offset : part.place.offset + part.place.size] == part.data
    stored = [part.place is not None for part in found.parts if isinstance(part, Media)]
    assert len(set(stored)) == 1 and stored[0] == (where in ("images", "stored.zip", "{name}ed.zip", ""))


@pytest.mark.parametrize("form", ["{}", "b'{}'"])
def test_images_in_the_record(tmp_path, form):
    document = record()
    for image in document["image_info"]:
        image["image_base64"] = form.format(base64.b64encode(IMAGES[image["image_name"]]).decode())
    (found,) = read(written(tmp_path / "d.jsonl", [document]))
    assert shown(found) == ["A.", 1, "B.", 0, 2, "C. D."]


def test_in_a_bucket():
    system = fsspec.filesystem("memory")
    system.pipe("/mmc4/d.jsonl", json.dumps(record()).encode())
    for name, data in IMAGES.items():
        system.pipe(f"/mmc4/images/{name}", data)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in IMAGES.items():
            archive.writestr(name, data)
    system.pipe("/mmc4/d.zip", file.getvalue())
    for images in "images", "*.zip":
        (found,) = read("memory://mmc4/d.jsonl", images=f"memory://mmc4/{images}")
        assert shown(found) == ["A.", 1, "B.", 0, 2, "C. D."]


def test_images_that_could_not_be_downloaded_are_left_out_and_counted(folder, caplog):
    (folder / "images" / "0.png").unlink()
    (folder / "images" / "1.png").write_bytes(b"<html>404")
    caplog.set_level(logging.INFO)
    some, none = read(
        written(folder / "d.jsonl", [record(), record(matches=[(0, 1), (1, 1)])]), images=f"{folder}/images"
    )
    assert shown(some) == ["A. B.", 2, "C. D."]
    assert type(none) is RecordError and none.why == "none of its 2 images is there"
    assert "1 images; 2 more are not there" in caplog.text


def test_images_that_match_nothing_well_are_left_out(folder):
    (found,) = read(written(folder / "d.jsonl", [record()]), images=f"{folder}/images", min_similarity=0.24)
    assert shown(found) == ["A. B.", 0, 2, "C. D."]


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(text_list=None), "text_list is no list of texts"),
        (dict(text_list=["a", None]), "text_list is no list of texts"),
        (dict(image_info={}), "image_info is no list of objects"),
        (dict(image_info=[3]), "image_info is no list of objects"),
        (dict(image_info=[{}]), "image 0: its matched_text_index None is none of its sentences"),
        (dict(image_info=[dict(image_name="0.png", matched_text_index=4)]), "matched_text_index 4 is none"),
        (dict(image_info=[dict(image_name="0.png", matched_text_index=-1)]), "matched_text_index -1 is none"),
        (dict(image_info=[dict(image_name="0.png", matched_text_index=True)]), "matched_text_index True is none"),
        (dict(image_info=[dict(matched_text_index=0)]), "neither image_name nor image_base64, only matched_text_index"),
        (dict(image_info=[dict(image_name="../d.jsonl", matched_text_index=0)]), "none of its 1 images is there"),
        (dict(image_info=[dict(image_base64="é", matched_text_index=0)]), "none of its 1 images is there"),
        (dict(image_info=[dict(image_name="0.png", matched_text_index=0, matched_sim="x")]), "'x' is no number"),
    ],
)
def test_a_bad_document_costs_itself_and_is_named(folder, change, why):
    path = written(folder / "d.jsonl", [record() | change, record()])
    error, good = read(path, images=f"{folder}/images")
    assert type(error) is RecordError and error.where == f"{path}:1" and why in error.why
    assert isinstance(good, Document)


def test_images_that_are_nowhere_are_said_at_once(folder):
    path = written(folder / "d.jsonl", [record()])
    for images, why in ("nowhere", "no folder"), ("no*.zip", "there is no such file"), ("d.jsonl", "no folder"):
        with pytest.raises(DataError, match=why):
            Mmc4("train", dict(train=str(path)), images=f"{folder}/{images}")
    (folder / "stored.zip").write_bytes((folder / "stored.zip").read_bytes()[:200])
    with pytest.raises(DataError, match="stored.zip is no zip that can be read"):
        Mmc4("train", dict(train=str(path)), images=f"{folder}/*.zip")


def test_a_zip_of_documents_that_is_damaged(tmp_path):
    path = written(tmp_path / "d.jsonl.zip", [record(matches=[], url=str(random.random())) for _ in range(5000)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (error,) = read(path)
    assert type(error) is FileError and "cannot be read to its end" in error.why
    path.write_bytes(data[: len(data) // 2] + b"damaged!" + data[len(data) // 2 + 8 :])
    *before, error = read(path)
    assert type(error) is FileError and len(before) > 1000


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs the sample of MMC4")
def test_all_documents_of_the_real_sample(tmp_path):
    names = [image["image_name"] for line in SAMPLE.open() for image in json.loads(line)["image_info"]]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for n, name in enumerate(names):
            archive.writestr(name, IMAGES[f"{n % 4}.png"])
    found = read(SAMPLE, images=f"{tmp_path}/*.zip")
    assert len(found) == 107 and all(isinstance(each, Document) for each in found)
    assert sum(isinstance(part, Media) for each in found for part in each.parts) == len(names) == 417
    records = [json.loads(line) for line in SAMPLE.open()]
    for document, source in zip(found, records, strict=True):
        texts = [part.text for part in document.parts if isinstance(part, Text)]
        assert " ".join(texts).split() == " ".join(source["text_list"]).split()


@pytest.mark.parametrize("damaged", ["d.jsonl", "d.jsonl.zip", "stored.zip", "deflated.zip"])
def test_fuzz(folder, damaged):
    document = record()
    document["image_info"][1]["image_base64"] = base64.b64encode(IMAGES["1.png"]).decode()
    path = written(folder / (damaged if damaged[0] == "d" and "json" in damaged else "d.jsonl"), [document] * 4)
    images = damaged if "json" not in damaged else "images"
    reader = Mmc4("train", dict(train=str(path)), images=f"{folder}/{images}")

    def everything():
        if images == "images":
            return reader.read(str(path))
        try:
            return read(path, images=f"{folder}/{images}")
        except DataError as error:
            return [RecordError("", str(error))]

    print(damaged, survives(everything, folder / damaged))
