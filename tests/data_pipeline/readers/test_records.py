"""Parquet, TFRecord and ArrayRecord files, and pages in Parquet; whole and damaged."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_pipeline.documents import DataError, Document, FileError, Media, RecordError, Text
from data_pipeline.readers.obelics import Obelics
from data_pipeline.readers.parquet import Parquet
from data_pipeline.readers.records import ArrayRecord, TfRecord
from tests.data_pipeline.readers.fuzz import survives

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read(kind, path, **keys):
    reader = kind("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def example(**values) -> bytes:
    import tensorflow as tf

    feature = tf.train.Feature
    kinds = {
        bytes: lambda v: feature(bytes_list=tf.train.BytesList(value=[v])),
        int: lambda v: feature(int64_list=tf.train.Int64List(value=[v])),
    }
    named = {name: kinds[type(value)](value) for name, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


@pytest.fixture(params=["tfrecord", "array_record"])
def records(request, tmp_path):
    """(Reader, file, how to write records)."""
    path = tmp_path / f"a.{request.param}"

    def write(*serialized):
        if request.param == "tfrecord":
            import tensorflow as tf

            with tf.io.TFRecordWriter(str(path)) as writer:
                for record in serialized:
                    writer.write(record)
        else:
            from array_record.python.array_record_module import ArrayRecordWriter

            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in serialized:
                writer.write(record)
            writer.close()

    return (TfRecord if request.param == "tfrecord" else ArrayRecord), path, write


def test_examples_are_documents_by_template(records):
    kind, path, write = records
    write(*(example(jpg=png(i % 256), txt=f"Picture {i}.".encode(), n=i) for i in range(600)))
    found = read(kind, path, template="{jpg:image}{n}: {txt}")
    assert [each.parts for each in found] == [
        (Media("image", png(i % 256)), Text(f"{i}: Picture {i}.")) for i in range(600)
    ]
    assert found[5].where == f"{path}[5]"


def test_examples_that_are_none_or_lack_something_are_named(records):
    kind, path, write = records
    write(
        example(txt=b"good"),
        b"\x0a\xff\xff\xff garbage",
        example(text=b"x"),
        example(txt=b"\xff"),
        example(txt=b"last"),
    )
    first, *errors, last = read(kind, path, template="{txt}")
    assert (first.parts, last.parts) == ((Text("good"),), (Text("last"),))
    assert [error.where for error in errors] == [f"{path}[{n}]" for n in (1, 2, 3)]
    for error, why in zip(errors, ("cannot be read", "'txt' is none of text", "no UTF-8"), strict=True):
        assert why in error.why


def test_a_compressed_tfrecord_is_read(tmp_path):
    import tensorflow as tf

    path = tmp_path / "a.tfrecord.gz"
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        writer.write(example(text=b"One."))
    assert [each.parts for each in read(TfRecord, path)] == [(Text("One."),)]


def test_damaged_files_of_examples_give_documents_and_errors(records):
    kind, path, write = records
    write(*(example(text=f"Text {i}.".encode()) for i in range(20)))
    found = survives(lambda: read(kind, path), path)
    assert found["Document"] and found["FileError"]


def parquet(path, row_group_size=7, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, write_page_checksum=True)
    return path


def test_rows_are_documents_by_template_and_hub_images_and_bytes_are_media(tmp_path):
    images = [{"bytes": png(i), "path": None} for i in range(20)]
    path = parquet(
        tmp_path / "a.parquet",
        image=images,
        raw=[png(100 + i) for i in range(20)],
        text=[f"T{i}" for i in range(20)],
        meta=[{"lang": "en", "n": i} for i in range(20)],
    )
    found = read(Parquet, path, template="{image:image}{raw:image}{text} {meta.n}")
    assert [each.parts for each in found] == [
        (Media("image", png(i)), Media("image", png(100 + i)), Text(f"T{i} {i}")) for i in range(20)
    ]


def test_rows_with_nulls_and_what_img2dataset_could_not_download_are_named(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        caption=["one", None, "three", "four"],
        jpg=[png(1), png(2), None, png(4)],
        status=["success", "success", "failed_to_download", "success"],
    )
    first, *errors, last = read(Parquet, path, template="{jpg:image}{caption}")
    assert first.parts[1] == Text("one") and last.parts[1] == Text("four")
    assert [error.why for error in errors] == ["its caption is null, no text", "img2dataset says: failed_to_download"]


def test_a_column_that_is_nowhere_is_the_user_s_mistake(tmp_path):
    path = parquet(tmp_path / "a.parquet", content=["x"])
    with pytest.raises(DataError, match=r"a.parquet: column 'contents' is none of content; did you mean content"):
        read(Parquet, path, template="{contents}")


def test_damaged_parquet_gives_documents_and_errors(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=[f"Text {i} of many." for i in range(50)])
    found = survives(lambda: read(Parquet, path), path)
    assert found["FileError"]


PAGE = dict(
    images=[None, "http://a/1.png", None, "http://a/2.png", None], texts=["Before.", None, "Between.", None, " "]
)


def test_pages_with_their_bytes_keep_their_order(tmp_path):
    images = [[png(1), None, None, b""]]
    path = parquet(tmp_path / "a.parquet", images=images, texts=[[None, "One.", "Two.", None]])
    assert [each.parts for each in read(Obelics, path)] == [(Media("image", png(1)), Text("One."), Text("\nTwo."))]


@pytest.fixture
def downloaded(tmp_path):
    """A tar as img2dataset writes it, with the second of the page's images."""
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        content = {"000.png": png(2), "000.json": json.dumps(dict(url="http://a/2.png", status="success")).encode()}
        content |= {"001.json": b"[", "001.png": b"x", "002.json": b'{"url": "http://a/3.png"}'}
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(tmp_path / "*.tar")


def test_addresses_are_looked_up_in_the_tars_and_images_that_are_nowhere_left_out(tmp_path, downloaded):
    none = dict(images=["http://a/1.png"], texts=[None])
    path = parquet(tmp_path / "a.parquet", **{key: [PAGE[key], none[key]] for key in PAGE})
    for _ in range(2):  # the second time from the file that the first one left
        page, error = read(Obelics, path, images=downloaded)
        texts = [part.text for part in page.parts if isinstance(part, Text)]
        (image,) = (part for part in page.parts if isinstance(part, Media))
        assert texts == ["Before.", "\nBetween."] and image.data == png(2)
        with open(image.place.path, "rb") as tar:
            tar.seek(image.place.offset)
            assert tar.read(image.place.size) == png(2)
        assert error.why == "none of its 1 images is there"


def test_pages_whose_lists_do_not_match_are_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", images=[[None], None, [None]], texts=[["a", "b"], ["c"], ["d"]])
    *errors, last = read(Obelics, path)
    assert [error.why for error in errors] == ["its images and texts are no lists of one length"] * 2
    assert isinstance(last, Document) and not isinstance(last, RecordError)


def test_damaged_pages_give_documents_and_errors(tmp_path):
    path = parquet(tmp_path / "a.parquet", images=[[png(1), None]] * 30, texts=[[None, "One."]] * 30)
    assert survives(lambda: read(Obelics, path), path)["FileError"]


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"<html>not found</html>")
    (error,) = read(Parquet, tmp_path / "a.parquet")
    assert isinstance(error, FileError) and "it is no Parquet" in error.why
