"""OBELICS and OmniCorpus by pyarrow's writer, with images in the rows and in what img2dataset downloaded."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Absent, DataError, Document, FileError, Media, Text
from data_pipeline.files import opened
from data_pipeline.readers.obelics import END, Obelics
from tests.data_pipeline.readers.fuzz import survives

FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
STRINGS = pa.list_(pa.string())


def pages(path, rows, images=STRINGS, **more):
    """Columns as OBELICS has them, and `more` by name: type."""
    rows = [{"metadata": "[]", "general_metadata": json.dumps({"url": "http://page"})} | row for row in rows]
    types = {"images": images, "metadata": pa.string(), "general_metadata": pa.string(), "texts": STRINGS} | more
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(types)), path)
    return path


def downloaded(folder, images, shard=0, missing=()):
    """Shards as img2dataset's webdataset format has them: the tar without what failed, the table with it."""
    folder.mkdir(exist_ok=True)
    rows = []
    with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
        for n, (url, data) in enumerate([*images.items(), *dict.fromkeys(missing).items()]):
            key = f"{shard:05}{n:04}"
            rows.append({"url": url, "key": key, "status": "success" if data else "failed_to_download"})
            for suffix, content in (
                {"jpg": data, "txt": b"alt", "json": json.dumps({"url": url}).encode()}.items() if data else ()
            ):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05}.parquet")
    return folder


@pytest.fixture
def store(tmp_path):
    images = tmp_path / "images"
    downloaded(images, {"http://a/1.jpg": b"one", "http://a/ä 2.jpg": b"two"}, 0, ["http://a/lost.jpg"])
    downloaded(images, {"http://a/3.jpg": b"three"}, 1)
    return f"{images}/*.tar"


def read(path, **keys):
    reader = Obelics("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_obelics_finds_its_images_in_what_was_downloaded(tmp_path, store):
    row = {"images": ["http://a/1.jpg", None, "http://a/3.jpg", None], "texts": [None, "A.", None, "B.\n\nC."]}
    path = pages(tmp_path / "a.parquet", [row])
    (document,) = read(path, images=store)
    assert document.where == f"{path}[0]"
    assert [part[:2] for part in document.parts if isinstance(part, Media)] == [("image", b"one"), ("image", b"three")]
    assert document.parts[1::2] == (Text("A."), Text("B.\n\nC."))
    for part in document.parts[::2]:
        file, start, size = part.place
        assert opened(file).read()[start : start + size] == part.data


def test_an_image_that_was_not_downloaded_is_left_out_and_counted(tmp_path, store):
    urls = ["http://a/lost.jpg", "http://a/never.jpg", "http://a/ä 2.jpg"]
    row = {"images": [None, urls[0], None, urls[1], urls[2]], "texts": ["A.", None, "B.", None, None]}
    document, absent = read(pages(tmp_path / "a.parquet", [row]), images=store)
    assert [part.text if isinstance(part, Text) else part.data for part in document.parts] == ["A.", "\n\nB.", b"two"]
    assert type(absent) is Absent and absent.why == "2 of its images are not there"


@pytest.mark.parametrize("kind", [FILE, pa.binary()])
def test_images_may_be_bytes_in_the_row(tmp_path, kind):
    def cell(data):
        return {"bytes": data, "path": None} if kind is FILE else data

    rows = [
        {"images": [cell(b"one"), None, cell(b"two")], "texts": [None, "A.", "<image>"]},
        {"images": [cell(b"one"), cell(None), None], "texts": [None, None, "A."]},
    ]
    first, second, absent = read(pages(tmp_path / "a.parquet", rows, pa.list_(kind)))
    assert first.parts == (Media("image", b"one"), Text("A."), Media("image", b"two"))
    assert second.parts == (Media("image", b"one"), Text("A.")) and isinstance(absent, Absent)


def test_omnicorpus_says_which_images_are_valid(tmp_path):
    row = {"images": [b"1", None, b"2", b"3"], "texts": [None, "A.", None, None], "valid_image": [True, False, True]}
    rows = [row, row | {"valid_image": None}, row | {"valid_image": [True]}]
    first, second, error = read(
        pages(tmp_path / "a.parquet", rows, pa.list_(pa.binary()), valid_image=pa.list_(pa.bool_()))
    )
    assert [part.data for part in first.parts if isinstance(part, Media)] == [b"1", b"3"]
    assert len(second.parts) == 4 and "valid_image does not have one value for each of the 3" in error.why


def test_a_page_that_says_where_it_ends_is_several_documents(tmp_path):
    texts = [f"A.\n\n{END}\n\nB.", None, f"{END}", f"C. {END}"]
    first, second, third = read(
        pages(tmp_path / "a.parquet", [{"images": [None, b"i", None, None], "texts": texts}], pa.list_(pa.binary()))
    )
    assert first.parts == (Text("A."),) and third.parts == (Text("C."),)
    assert second.parts == (Text("B."), Media("image", b"i"))
    assert [d.where.rsplit("[")[-1] for d in (first, second, third)] == ["0].0", "0].1", "0].2"]


def test_rows_that_cannot_be_are_named(tmp_path):
    rows = [
        {"images": [b"i"], "texts": ["A."]},
        {"images": [b"i", None], "texts": [None]},
        {"images": None, "texts": ["A."]},
        {"images": [None], "texts": ["A."]},
    ]
    *errors, last = read(pages(tmp_path / "a.parquet", rows, pa.list_(pa.binary())))
    assert last.parts == (Text("A."),)
    assert [error.where for error in errors] == [f"{tmp_path}/a.parquet[{n}]" for n in range(3)]
    whys = ["has an image and a text at position 0", "it has 2 images, 1 texts", "it has no images, 1 texts"]
    assert all(why in error.why for error, why in zip(errors, whys, strict=True))


def test_wrong_schemas_and_keys_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [["http://a"]], "texts": [[None]]}, pa.schema({"image": STRINGS, "texts": STRINGS})), path
    )
    with pytest.raises(DataError, match="column 'images' is none of image, texts; did you mean image"):
        read(path)
    pages(path, [{"images": ["http://a"], "texts": [None]}])
    with pytest.raises(DataError, match="its images are addresses; give the source images"):
        read(path)
    with pytest.raises(DataError, match="no/.*.tar: there is no such file"):
        read(path, images=str(tmp_path / "no" / "*.tar"))
    pq.write_table(pa.table({"images": ["http://a"], "texts": ["x"]}), path)
    with pytest.raises(DataError, match="column images is string, no list"):
        read(path)


@given(st.lists(st.none() | st.binary(min_size=1, max_size=9) | st.text("ab c", max_size=5), max_size=8))
@settings(max_examples=60, deadline=None)
def test_order_is_the_row_s(tmp_path_factory, items):
    items = [b"first", *items]
    row = {
        "images": [item if isinstance(item, bytes) else None for item in items],
        "texts": [item if isinstance(item, str) else None for item in items],
    }
    path = pages(tmp_path_factory.mktemp("p") / "a.parquet", [row], pa.list_(pa.binary()))
    document, *absent = read(path)
    flat = "".join(part.text if isinstance(part, Text) else f"<{part.data.hex()}>" for part in document.parts)
    expected = [
        f"<{item.hex()}>" if isinstance(item, bytes) else item
        for item in items
        if item and item.strip() or isinstance(item, bytes)
    ]
    assert flat.replace("\n\n", "") == "".join(expected)
    assert len(absent) == (None in items)


def test_a_tar_that_became_shorter_is_named(tmp_path, store):
    reader_of = pages(tmp_path / "a.parquet", [{"images": ["http://a/3.jpg"], "texts": [None]}])
    reader = Obelics("train", dict(train=str(reader_of)), images=store)
    (tmp_path / "images" / "00001.tar").write_bytes(b"short")
    (error,) = reader.read(str(reader_of))
    assert "00001.tar has only 0 of 5 bytes" in error.why


def test_a_damaged_index_of_addresses_is_named(tmp_path, store):
    path = pages(tmp_path / "a.parquet", [{"images": ["http://a/3.jpg"], "texts": [None]}])
    assert isinstance(read(path, images=store)[0], Document)
    (index,) = (tmp_path / "images").glob("*.sqlite")
    index.write_bytes(b"nothing of the kind" * 500)
    with pytest.raises(DataError, match="sqlite is damaged .*; remove it, and it is made again"):
        read(path, images=store)


def test_a_page_without_any_of_its_images_is_absent(tmp_path, store):
    rows = [{"images": ["http://a/lost.jpg", None], "texts": [None, "A."]}, {"images": [None], "texts": ["B."]}]
    absent, document = read(pages(tmp_path / "a.parquet", rows), images=store)
    assert type(absent) is Absent and absent.why == "none of its 1 images is there"
    assert document.parts == (Text("B."),)


@pytest.mark.parametrize("kind", [pa.string(), FILE])
def test_fuzz(tmp_path, store, kind):
    image = {"bytes": b"pixels", "path": None} if kind is FILE else "http://a/1.jpg"
    rows = [{"images": [image, None], "texts": [None, f"Text {n}."]} for n in range(20)]
    path = pages(tmp_path / "a.parquet", rows, pa.list_(kind))
    reader = Obelics("train", dict(train=str(path)), images=store)
    print(kind, survives(lambda: reader.read(str(path)), path))


def test_a_file_that_was_cut_off_is_named(tmp_path):
    path = pages(tmp_path / "a.parquet", [{"images": [b"i"], "texts": [None]}] * 30, pa.list_(pa.binary()))
    pages(tmp_path / "b.parquet", [{"images": [b"i"], "texts": [None]}], pa.list_(pa.binary()))
    path.write_bytes(path.read_bytes()[:-100])
    error, document = read(tmp_path / "*.parquet")
    assert isinstance(error, FileError) and isinstance(document, Document)
