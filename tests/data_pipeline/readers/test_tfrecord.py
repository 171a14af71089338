"""TFRecord files by TensorFlow's own writer, whole and damaged."""

import gzip
import struct

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Document, FileError, Media, RecordError, Text
from data_pipeline.readers.tfrecord import TfRecord, serialized
from tests.data_pipeline.readers.fuzz import survives


def example(**values) -> bytes:
    """A serialized tf.train.Example of str, bytes, int, float and lists of one of these."""
    feature = {}
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        items = [item.encode() if isinstance(item, str) else item for item in items]
        if items and isinstance(items[0], int):
            feature[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=items))
        elif items and isinstance(items[0], float):
            feature[name] = tf.train.Feature(float_list=tf.train.FloatList(value=items))
        else:
            feature[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=items))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def written(path, records, compression=""):
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            writer.write(record)
    return path


def read(path, **keys):
    reader = TfRecord("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_img2dataset_s_features_are_a_pair(tmp_path):
    record = {"key": "000000000", "jpg": b"\xff\xd8 pixels", "txt": "Ä caption.", "status": "success", "width": 256}
    path = written(tmp_path / "00000.tfrecord", [example(**record)] * 3)
    found = read(path, template="{jpg:image}{txt}")
    assert [document.parts for document in found] == [(Media("image", record["jpg"]), Text("Ä caption."))] * 3
    assert found[2].where == f"{path}[2]"
    assert read(path, template="{key}, {width}")[0].parts == (Text("000000000, 256"),)


@pytest.mark.parametrize("compression, suffix", [("", ""), ("GZIP", ".gz")])
def test_text_is_read_also_from_compressed_files(tmp_path, compression, suffix):
    path = written(tmp_path / f"a.tfrecord{suffix}", [example(text=f"T{i}") for i in range(99)], compression)
    assert [document.parts for document in read(path)] == [(Text(f"T{i}"),) for i in range(99)]


@given(records=st.lists(st.binary(max_size=300), max_size=20))
@settings(max_examples=60, deadline=None)
def test_what_tensorflow_wrote_is_read_and_its_checksums_are_ours(tmp_path_factory, records):
    path = written(tmp_path_factory.mktemp("t") / "a.tfrecord", records)
    assert list(serialized(str(path))) == list(enumerate(records))


def test_what_is_not_there_or_no_text_is_named(tmp_path):
    records = [
        example(txt="x"),
        example(text=["a", "b"]),
        example(text=b"\xff"),
        example(text=[]),
        b"",
        b"\x0a\xff\xff",
    ]
    errors = read(written(tmp_path / "a.tfrecord", records))
    assert [error.where for error in errors] == [f"{tmp_path}/a.tfrecord[{n}]" for n in range(6)]
    whys = ["did you mean txt", "[\"b'a'\", \"b'b'\"], no text", "its text is no UTF-8", "is [], no text", "is empty"]
    for error, why in zip(errors, [*whys, "is no tf.train.Example"], strict=True):
        assert type(error) is RecordError and why in error.why, (why, error.why)
    (error,) = read(written(tmp_path / "b.tfrecord", [example(jpg=3, txt="x")]), template="{jpg:image}{txt}")
    assert error.why == "its jpg is 3, no name of a file"


def test_a_record_with_a_wrong_checksum_costs_itself(tmp_path):
    path = written(tmp_path / "a.tfrecord", [example(text=f"T{i}" * 10) for i in range(9)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = read(path)
    assert len(found) == 9 and found[4].why == "is damaged: its checksum is another one"
    assert all(isinstance(each, Document) for each in found[:4] + found[5:])


def test_after_a_wrong_length_or_the_end_nothing_can_be_read(tmp_path):
    path = written(tmp_path / "a.tfrecord", [example(text="T")] * 9)
    data, size = path.read_bytes(), path.stat().st_size // 9
    path.write_bytes(data[: 5 * size] + struct.pack("<Q", 2**62) + data[5 * size + 8 :])
    *before, last = read(path)
    assert len(before) == 5 and isinstance(last, FileError) and str(last).startswith(f"{path}[5]: is damaged, or no TF")
    for cut, why in {size - 2: "is cut off in a record of", 5: "is cut off in the length of a record"}.items():
        path.write_bytes(data[: 3 * size + cut])
        *before, last = read(path)
        assert len(before) == 3 and isinstance(last, FileError) and why in last.why
    (tmp_path / "a.gz").write_bytes(gzip.compress(data)[:-20])
    assert isinstance(read(tmp_path / "a.gz")[-1], FileError)


def sealed(data: bytes) -> bytes:
    """The same records with the checksums that they should have, up to where nobody can tell them apart."""
    from data_pipeline.readers.tfrecord import _masked_crc

    at, found = 0, b""
    while at + 12 <= len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        found += data[at : at + 8] + struct.pack("<I", _masked_crc(data[at : at + 8]))
        body = data[at + 12 : at + 12 + length]
        found += body + struct.pack("<I", _masked_crc(body)) if len(body) == length else data[at + 12 :]
        at += length + 16
    return found + data[at:]


@pytest.mark.parametrize("suffix, packed", [("", bytes), (".gz", gzip.compress)])
def test_fuzz(tmp_path, suffix, packed):
    path = tmp_path / f"a.tfrecord{suffix}"
    written(tmp_path / "plain", [example(text=f"Text {i}", jpg=b"pixels", n=i) for i in range(12)])
    path.write_bytes(packed((tmp_path / "plain").read_bytes()))
    reader = TfRecord("train", dict(train=str(path)), template="{jpg:image}{text}{n}")
    for repaired in (bytes, sealed) if not suffix else (bytes,):
        print(suffix, repaired.__name__, survives(lambda: reader.read(str(path)), path, repaired=repaired))
