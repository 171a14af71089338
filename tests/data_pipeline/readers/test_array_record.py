"""ArrayRecord files by the library's own writer, whole and damaged."""

import random

import fsspec
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipeline.documents import Document, FileError, Media, RecordError, Text
from data_pipeline.readers.array_record import ArrayRecord
from tests.data_pipeline.readers.fuzz import damaged, survives
from tests.data_pipeline.readers.test_tfrecord import example


def written(path, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def read(path, **keys):
    reader = ArrayRecord("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


@pytest.mark.parametrize("options", ["group_size:1", "group_size:10", "group_size:1,uncompressed", "group_size:300"])
def test_every_record_is_a_document(tmp_path, options):
    path = written(tmp_path / "a.array_record", [example(text=f"T{i}", jpg=b"p") for i in range(300)], options)
    found = read(path, template="{jpg:image}{text}")
    assert [document.parts for document in found] == [(Media("image", b"p"), Text(f"T{i}")) for i in range(300)]
    assert found[17].where == f"{path}[17]"


def test_a_file_in_a_bucket_is_copied(tmp_path):
    path = written(tmp_path / "a.array_record", [example(text=f"T{i}") for i in range(3)])
    with fsspec.open("memory://bucket/a.array_record", "wb") as file:
        file.write(path.read_bytes())
    assert [document.parts for document in read("memory://bucket/*.array_record")] == [
        (Text(f"T{i}"),) for i in range(3)
    ]


@pytest.mark.parametrize("group, lost", [(1, 1), (10, 10)])
def test_damage_costs_the_records_that_are_compressed_together(tmp_path, group, lost):
    records = [example(text=f"{hash((i,))}" * 30) for i in range(200)]
    path = written(tmp_path / "a.array_record", records, f"group_size:{group},uncompressed")
    data = bytearray(path.read_bytes())
    at = data.index(records[105])
    data[at + 20] ^= 1
    path.write_bytes(data)
    found = read(path)
    errors = [error for error in found if isinstance(error, RecordError)]
    assert len(found) == 200 and len(errors) == lost and all("hash mismatch" in error.why for error in errors)
    assert any(error.where == f"{path}[105]" for error in errors)
    assert all(document.parts[0].text.encode() in records[n] for n, document in enumerate(found) if n < 100)


@pytest.mark.parametrize("size", [0, 10, 70_000, -1])
def test_a_file_that_was_cut_off_has_lost_the_list_of_its_records(tmp_path, size):
    path = written(tmp_path / "a.array_record", [example(text=f"T{i}" * 50) for i in range(300)])
    path.write_bytes(path.read_bytes()[:size])
    (error,) = read(path)
    assert isinstance(error, FileError) and error.where == f"{path}[0]" and "is cut off or damaged" in error.why


def test_a_file_that_is_gone_is_no_damage(tmp_path):
    path = written(tmp_path / "a.array_record", [example(text="T")])
    reader = ArrayRecord("train", dict(train=str(path)))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(reader.read(str(path)))


@pytest.mark.parametrize("options", ["group_size:1", "group_size:10", "group_size:1,uncompressed"])
def test_fuzz(tmp_path, options):
    path = written(tmp_path / "a.array_record", [example(text=f"Text {i}", n=i) for i in range(30)], options)
    reader = ArrayRecord("train", dict(train=str(path)), template="{text}{n}")
    print(options, survives(lambda: reader.read(str(path)), path))
    good = path.read_bytes()
    # Blocks are where their hashes are looked for: damage that moves none is seen later. Records, then the footer.
    for part in (slice(0, 3000), slice(1 << 16, (1 << 16) + 1000), slice(len(good) - 500, len(good))):

        def in_place(data, part=part):
            bad = damaged(good[part], random.Random(data)).ljust(part.stop - part.start, b"\0")
            return good[: part.start] + bad[: part.stop - part.start] + good[part.stop :]

        print(options, part, survives(lambda: reader.read(str(path)), path, repaired=in_place))


def test_documents_are_named_by_their_number(tmp_path):
    found = read(written(tmp_path / "a.array_record", [example(text="T"), b"", example(text="U")]))
    assert [isinstance(each, Document) for each in found] == [True, False, True]
    assert found[1].where.endswith("[1]") and found[1].why == "is empty"
