"""Parquet by pyarrow's writer, as the corpora have it and damaged."""

import io
import threading
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Absent, DataError, Document, FileError, Media, Place, RecordError, Text
from data_pipeline.readers.parquet import Parquet
from tests.data_pipeline.readers.fuzz import survives

FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def written(path, columns, types=None, **keys):
    schema = pa.schema(types) if types else None
    pq.write_table(pa.table(columns, schema=schema), path, **keys)
    return path


def read(path, **keys):
    reader = Parquet("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_fineweb_is_read_by_the_column_of_its_text(tmp_path):
    columns = {"text": [f"Page {i}." for i in range(500)], "id": list(range(500)), "language_score": [0.9] * 500}
    path = written(tmp_path / "a.parquet", columns, row_group_size=130)
    found = read(path)
    assert [document.parts for document in found] == [(Text(f"Page {i}."),) for i in range(500)]
    assert found[131].where == f"{path}[131]"
    assert read(path, template="{id}: {text}")[7].parts == (Text("7: Page 7."),)


def test_what_img2dataset_could_not_download_is_absent(tmp_path):
    columns = {
        "url": ["http://a/1", "http://a/2", "http://a/3"],
        "caption": ["One.", "Two.", "Three."],
        "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "HTTP Error 404", None],
        "jpg": [b"pixels", None, b"more"],
    }
    first, failed, last = read(written(tmp_path / "a.parquet", columns), template="{jpg:image}{caption}")
    assert first.parts == (Media("image", b"pixels"), Text("One.")) and last.parts[0].data == b"more"
    assert type(failed) is Absent and failed.kind == "absent"
    assert str(failed) == f"{tmp_path}/a.parquet[1]: its status is failed_to_download: HTTP Error 404"


def test_media_are_bytes_or_files_beside_as_hugging_face_has_them(tmp_path):
    (tmp_path / "b.flac").write_bytes(b"sound")
    cells = [{"bytes": b"own", "path": "x.flac"}, {"bytes": None, "path": "b.flac"}, {"bytes": None, "path": None}]
    cells += [None, {"bytes": b"", "path": None}, {"bytes": None, "path": "/etc/passwd"}]
    columns = {"audio": cells, "text": ["T"] * len(cells)}
    path = written(tmp_path / "a.parquet", columns, {"audio": FILE, "text": pa.large_string()})
    first, second, *errors = read(path, template="{audio:audio}{text}")
    assert first.parts[0] == Media("audio", b"own")
    assert second.parts[0] == Media("audio", b"sound", Place(str(tmp_path / "b.flac"), 0, 5))
    whys = ["its audio is null", "its audio is null", "its audio is empty", "is no file in the folder"]
    assert [why in error.why for error, why in zip(errors, whys, strict=True)] == [True] * 4


def test_fields_of_structs_and_other_types_of_text(tmp_path):
    types = {"meta": pa.struct({"title": pa.string(), "n": pa.int8()}), "raw": pa.binary()}
    types |= {"kind": pa.dictionary(pa.int8(), pa.string()), "a.b": pa.string_view(), "score": pa.float64()}
    columns = {"meta": [{"title": "T", "n": 3}, None], "raw": ["ä".encode(), b"\xff"], "kind": ["k", "k"]}
    columns |= {"a.b": ["dots", "dots"], "score": [0.5, 1.0]}
    path = written(tmp_path / "a.parquet", columns, types)
    first, error = read(path, template="{meta.title}{meta.n}{raw}{kind}{a.b}{score}")
    assert first.parts == (Text("T3äkdots0.5"),)
    assert "'meta.title' is none of" in error.why
    assert read(path, template="{raw}")[1].why == "its raw is no UTF-8 (invalid start byte at byte 0)"


@given(texts=st.lists(st.none() | st.text(), min_size=1, max_size=200), size=st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_null_rows_cost_themselves_alone(tmp_path_factory, texts, size):
    path = tmp_path_factory.mktemp("p") / "a.parquet"
    written(path, {"text": texts}, {"text": pa.string()}, row_group_size=size)
    found = read(path)
    assert [type(each) for each in found] == [RecordError if text is None else Document for text in texts]
    assert "".join(part.text for each in found if isinstance(each, Document) for part in each.parts) == "".join(
        text for text in texts if text
    )


@pytest.mark.parametrize(
    "template, message",
    [
        ("{txet}", "a.parquet: column 'txet' is none of text, meta, jpg, tags; did you mean text"),
        ("{meta.titel}", "column 'meta.titel' is none of meta.title; did you mean meta.title"),
        ("{text.x}", "column 'text.x' is none of"),
        ("{meta}", "column meta is struct<title: string>, no text"),
        ("{tags}", "column tags is list<.*>, no text"),
        ("{tags:image}", "column tags is list<.*>; images are bytes, structs of bytes and path, or names"),
        ("{jpg:imag}", "'imag' is none of image, audio"),
    ],
)
def test_a_column_that_is_nowhere_or_does_not_fit_is_named(tmp_path, template, message):
    path = tmp_path / "a.parquet"
    written(path, {"text": ["T"], "meta": [{"title": "T"}], "jpg": [b"x"], "tags": [["a"]]})
    with pytest.raises(DataError, match=message):
        read(path, template=template)


def test_later_files_of_another_schema_are_passed_over(tmp_path):
    written(tmp_path / "a.parquet", {"text": ["A"]})
    written(tmp_path / "b.parquet", {"Text": ["B"]})
    (tmp_path / "c.parquet").write_bytes(b"")
    pq.write_table(pa.Table.from_arrays([pa.array(["D"]), pa.array(["d"])], ["text", "text"]), tmp_path / "d.parquet")
    written(tmp_path / "e.parquet", {"text": ["E"]})
    first, *errors, last = read(tmp_path / "*.parquet")
    assert (first.parts, last.parts) == ((Text("A"),), (Text("E"),))
    assert all(isinstance(error, FileError) for error in errors)
    assert "'text' is none of Text; did you mean Text" in str(errors[0])
    assert "cannot be read" in str(errors[1]) and "two columns have one name" in str(errors[2])


def test_a_file_that_was_cut_off_has_lost_its_footer(tmp_path):
    path = written(tmp_path / "a.parquet", {"text": ["A" * 100] * 100})
    path.write_bytes(path.read_bytes()[:-10])
    (error,) = read(path)
    assert isinstance(error, FileError) and str(error).startswith(f"{path}: cannot be read")


def test_a_damaged_page_costs_its_row_group(tmp_path):
    texts = [f"{hash((i, j))}" for i in range(40) for j in range(25)]
    keys = dict(row_group_size=100, write_page_checksum=True, use_dictionary=False, compression="none")
    path = written(tmp_path / "a.parquet", {"text": texts}, **keys)
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(3).column(0)
    data[chunk.data_page_offset + chunk.total_compressed_size - 10] ^= 4
    path.write_bytes(data)
    found = read(path)
    (error,) = [each for each in found if isinstance(each, RecordError)]
    assert (
        isinstance(error, FileError) and error.where == f"{path}[300]" and "left out from row 300 to 400" in error.why
    )
    assert [d.where[len(f"{path}[") : -1] for d in found if isinstance(d, Document)] == [
        str(i) for i in range(1000) if not 300 <= i < 400
    ]


def test_a_row_group_is_not_held_in_memory(tmp_path):
    path = tmp_path / "a.parquet"
    image, rows = bytes(100_000), 1000
    # Of pages one is held: the writer looks at its size after each `write_batch_size` values.
    keys = dict(compression="none", use_dictionary=False, write_batch_size=10)
    written(path, {"jpg": [image] * rows, "big": [image] * rows}, **keys)
    assert pq.read_metadata(path).num_row_groups == 1 and path.stat().st_size > 190_000_000
    reader, before = Parquet("train", dict(train=str(path)), template="{jpg:image}"), pa.total_allocated_bytes()
    tracemalloc.start()  # what pyarrow reads through Python's files is Python's memory
    try:
        most = max(pa.total_allocated_bytes() - before for _ in reader.read(str(path)))
        most += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 40_000_000


def test_two_threads_read_one_file(tmp_path):
    path = written(tmp_path / "a.parquet", {"text": [f"{i}" for i in range(5000)]}, row_group_size=500)
    reader, found = Parquet("train", dict(train=str(path))), [[], []]
    threads = [threading.Thread(target=lambda to=to: to.extend(reader.read(str(path)))) for to in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [document.parts for document in found[0]] == [document.parts for document in found[1]]
    assert len(found[0]) == 5000


def test_a_failing_disk_is_no_damage(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", {"text": ["A"] * 10})

    class Failing(io.FileIO):
        def readinto(self, buffer):
            raise OSError(5, "Input/output error")

        read = readinto

    reader = Parquet("train", dict(train=str(path)))
    monkeypatch.setattr("data_pipeline.readers.parquet.opened", Failing)
    with pytest.raises(OSError, match="Input/output error"):
        list(reader.read(str(path)))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_fuzz(tmp_path, compression, version):
    columns = {"text": [f"Page {i}." for i in range(30)], "meta": [{"n": i} for i in range(30)], "jpg": [b"p"] * 30}
    path = written(
        *(tmp_path / "a.parquet", columns),
        **dict(row_group_size=8, compression=compression, data_page_version=version),
    )
    reader = Parquet("train", dict(train=str(path)), template="{jpg:image}{text}{meta.n}")
    print(compression, version, survives(lambda: reader.read(str(path)), path))
