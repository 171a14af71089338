"""Tars of samples, by the standard library's writer: as they should be, as people make them, and damaged."""

import gzip
import io
import json
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import fsspec
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import DataError, Document, FileError, Media, RecordError, Text
from data_pipeline.files import opened
from data_pipeline.media import host
from data_pipeline.readers import tar as tar_module
from data_pipeline.readers.tar import Tar, scan
from tests.data_pipeline.readers.fuzz import survives

DIGITS = Path(__file__).parents[3] / "../shared/data/spoken_digits/recordings.tar"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar(members, form=tarfile.USTAR_FORMAT) -> bytes:
    """A tar of (name, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def pairs(n: int) -> list[tuple[str, bytes]]:
    """As img2dataset writes them."""
    found = []
    for i in range(n):
        meta = {"url": "http://a.b/c.jpg", "caption": f"Caption {i}", "key": f"{i:09}", "status": "success"}
        found += [(f"{i:09}.jpg", f"pixels {i}".encode() * 50), (f"{i:09}.txt", f"Caption {i}".encode())]
        found += [(f"{i:09}.json", json.dumps(meta, indent=4).encode())]
    return found


def read(path, **keys):
    reader = Tar("train", dict(train=str(path)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


def written(tmp_path, members, name="a.tar", **keys):
    (tmp_path / name).write_bytes(tar(members, **keys))
    return tmp_path / name


@pytest.mark.parametrize("suffix, packed", [("", bytes), (".gz", gzip.compress), (".zst", zstd.compress)])
def test_a_sample_is_a_document_and_its_media_lie_where_it_says(tmp_path, suffix, packed):
    file = tmp_path / f"00000.tar{suffix}"
    content = tar(pairs(100))
    file.write_bytes(packed(content))
    found = read(file)
    assert [d.where for d in found] == [f"{file}:{i:09}" for i in range(100)]
    for i, (image, text) in enumerate(d.parts for d in found):
        assert (image.kind, image.data, text) == ("image", f"pixels {i}".encode() * 50, Text(f"Caption {i}"))
        if suffix:
            assert image.place is None
        else:
            path, offset, size = image.place
            assert path == str(file) and content[offset : offset + size] == image.data


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_members_may_lie_anywhere(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("t") / "a.tar"
    members = data.draw(st.permutations(pairs(8)))
    file.write_bytes(tar(members, data.draw(st.sampled_from(list(FORMATS.values())))))
    texts = {d.where[-9:]: d.parts[1].text for d in read(file)}
    assert texts == {f"{i:09}": f"Caption {i}" for i in range(8)}
    firsts = list(dict.fromkeys(name.split(".")[0] for name, _ in members))
    assert list(texts) == firsts


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_scanned_is_what_the_standard_library_finds(tmp_path, form):
    names = ["a.jpg", "dir/" * 20 + "b.jpg", "é" * 40 + ".txt", "./x/ .y.z.json"]
    if form != "ustar":
        names += ["long" * 90 + ".txt", "日本語" * 60 + ".txt", "n\nl" * 80 + ".jpg"]
    file = written(tmp_path, [(name, name.encode() * 9) for name in names], form=FORMATS[form])
    with open(file, "rb") as opened, tarfile.open(file) as archive:
        assert list(scan(opened)) == [(m.name, m.offset_data, m.size) for m in archive]
    with open(file, "ab") as opened:
        opened.write(tar([("later.jpg", b"1")]))
    with open(file, "rb") as opened:
        assert [name for name, _, _ in scan(opened)] == [*names, "later.jpg"]


def test_keys_may_have_dots_and_so_may_folders(tmp_path):
    names = ["v1.2/a.b", "v1.2/a.c", "v1.3/a.b", "./d", "e..f"]
    file = written(tmp_path, [(f"{n}.{s}", f"{n} {s}".encode()) for s in ("PNG", "txt") for n in names])
    keys = [n.removeprefix("./") for n in names]
    assert [(d.where, d.parts[1].text) for d in read(file)] == [
        (f"{file}:{key}", f"{name} txt") for key, name in zip(keys, names, strict=True)
    ]


def test_the_template_says_which_suffixes_have_dots(tmp_path):
    file = written(tmp_path, [("a.jpg", b"1"), ("a.seg.png", b"2"), ("a.seg.txt", b"of b"), ("a.txt", b"of a\r\n")])
    found = [d.parts for d in read(file, template="{jpg}{seg.png:image}{txt}") if isinstance(d, Document)]
    assert [[p.data if isinstance(p, Media) else p.text for p in parts] for parts in found] == [[b"1", b"2", "of a"]]


def test_of_the_json_any_key_is_text(tmp_path):
    members = [("a.flac", b"1"), ("a.json", b'{"caption": "C", "meta": {"n": 3}}'), ("a.npy", b"\xff")]
    (found,) = read(
        written(tmp_path, members), template="{audio}{json.caption} {json.meta.n}", learned=["json.caption"]
    )
    assert found.parts == (Media("audio", b"1", found.parts[0].place), Text("C"), Text(" 3", False))


@pytest.mark.parametrize(
    "members, why",
    [
        ({"a.txt": b"T"}, "has no image, only txt"),
        ({"a.jpg": b"1"}, "has no txt, only jpg"),
        ({"a.tar": tar(pairs(3))}, "has no image, only tar; a tar in a tar has to be unpacked"),
        ({"a.jpg": b"1", "a.webp": b"2", "a.txt": b"T"}, r"has jpg and webp; say which .* as \{jpg:image\}"),
        ({"a.jpg": b"1", "a.JPG": b"2", "a.txt": b"T"}, "has more than one jpg"),
        ({"a.jpg": b"1", "a.txt": b"T\xc3"}, "its txt is no UTF-8 .unexpected end of data at byte 1"),
        ({"a.jpg": b"1", "a.txt": b"T", "a.json": b"{'a': 1}"}, "its json is no JSON"),
        ({"a.txt": b"", "a.json": b'{"status": "failed_to_download", "error_message": "404"}'}, "download: 404"),
    ],
)
def test_a_bad_sample_costs_itself_and_is_named(tmp_path, members, why):
    good = [("z.jpg", b"1"), ("z.txt", b"T")]
    file = written(tmp_path, [*members.items(), *good])
    bad, last = read(file)
    assert type(bad) is RecordError and bad.where == f"{file}:a" and last.where == f"{file}:z"
    with pytest.raises(RecordError, match=why):
        raise bad


@pytest.mark.parametrize("form", FORMATS)
def test_headers_of_what_is_passed_over_are_passed_over(tmp_path, form):
    file = tmp_path / "a.tar"
    long = "" if form == "ustar" else "x" * 200
    with tarfile.open(file, "w", format=FORMATS[form], pax_headers={"comment": "of all"}) as archive:
        for name in (f"{long}l.jpg", f"{long}a.jpg", f"{long}a.txt"):
            info = tarfile.TarInfo(name)
            if "l.jpg" in name:
                info.type, info.linkname = tarfile.SYMTYPE, long * 2 or "k"
            else:
                info.size = 2
            archive.addfile(info, io.BytesIO(b"ab"))
    assert [d.parts[1].text for d in read(file)] == ["ab"]


def test_a_duplicate_is_named_though_other_names_are_passed_over(tmp_path):
    members = [*pairs(2), ("000000001.txt", b"again"), ("README", b""), ("._000000000.jpg", b""), (".x", b"")]
    first, second = read(written(tmp_path, members))
    assert isinstance(first, Document) and "more than one txt" in second.why


def test_links_and_folders_are_no_members(tmp_path):
    file = tmp_path / "a.tar"
    (tmp_path / "d.jpg").mkdir()
    (tmp_path / "s.jpg").symlink_to("nowhere")
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "a.txt").write_bytes(b"T")
    with tarfile.open(file, "w") as archive:
        for name in ("d.jpg", "s.jpg", "a.jpg", "a.txt"):
            archive.add(tmp_path / name, name)
    assert [d.where for d in read(file)] == [f"{file}:a"]


@pytest.mark.skipif(not shutil.which("tar"), reason="needs GNU tar")
@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_file_stored_without_its_holes_is_no_member(tmp_path, form):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    (tmp_path / "a.txt").write_bytes(b"T")
    subprocess.run(["tar", f"--format={form}", "-Scf", "a.tar", "a.jpg", "a.txt"], cwd=tmp_path, check=True)
    (error,) = read(tmp_path / "a.tar")
    assert error.why == "has no image, only txt"


@pytest.mark.skipif(not DIGITS.exists(), reason="needs the recordings of spoken digits")
def test_two_thousand_real_recordings_are_read_and_decoded():
    found = read(DIGITS, template="{audio:audio}")
    assert len(found) == 2000
    assert all(len(host("audio").decode(d.parts[0].data, d.where)) for d in found[::50])


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_of_a_tar_that_was_cut_off_what_stands_before_is_read(tmp_path, share, packed):
    noise = random.Random(0).randbytes
    file = tmp_path / ("a.tar" if packed is bytes else "a.tar.gz")
    members = [(f"{i:03}.{s}", noise(2000) if s == "jpg" else b"T") for i in range(300) for s in ("jpg", "txt")]
    content = packed(tar(members))
    file.write_bytes(content[: int(len(content) * share)])
    *before, last = read(file)
    assert isinstance(last, FileError) and last.where == str(file)
    documents = [each for each in before if isinstance(each, Document)]
    assert len(documents) > 300 * share - 40 and len(before) - len(documents) <= 1


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    file = written(tmp_path, pairs(9))
    content = bytearray(file.read_bytes())
    at = read(file)[5].parts[0].place.offset - 500
    content[at] ^= 1
    file.write_bytes(content)
    *before, last = read(file)
    assert len(before) == 5 and isinstance(last, FileError) and f"no header of a tar at byte {at - 12}" in last.why
    file.write_bytes(b"")
    assert "byte 0" in read(file)[0].why


@pytest.mark.parametrize("form, field", [("ustar", b"\xff" * 12), ("gnu", b"\x80" + b"\0" * 6 + b"\1" * 5)])
def test_sizes_that_cannot_be_end_the_file(tmp_path, form, field):
    header = bytearray(tar([("a.jpg", b"1")], FORMATS[form])[:512])
    header[124:136] = field
    file = tmp_path / "a.tar"
    file.write_bytes(sealed(bytes(header) + bytes(9 * 512)))
    (error,) = read(file)
    assert isinstance(error, FileError) and "a.jpg at byte 512 has" in error.why


def test_what_is_compressed_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_module.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar(pairs(3))))
    reader = Tar("train", dict(train=f"{tmp_path}/a.tar.gz"))
    documents = reader.read(reader.shards()[0])
    next(documents)
    documents.close()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("suffix, packed", [("", bytes), (".gz", gzip.compress)])
def test_a_tar_in_a_bucket_is_read_by_its_address(suffix, packed):
    address = f"memory://tars/00000.tar{suffix}"
    with fsspec.open(address, "wb") as file:
        file.write(packed(tar(pairs(3))))
    found = read(address)
    assert [d.parts[1].text for d in found] == [f"Caption {i}" for i in range(3)]
    for document in found:
        if suffix:
            assert document.parts[0].place is None
        else:
            path, offset, size = document.parts[0].place
            assert opened(path).read()[offset : offset + size] == document.parts[0].data


def test_a_modality_that_there_is_not_is_named(tmp_path):
    with pytest.raises(DataError, match="'imag' is none of image, audio"):
        read(written(tmp_path, pairs(1)), template="{jpg:imag}")


def sealed(data: bytes) -> bytes:
    """A tar's bytes with the checksums that its headers should have."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for n, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block) - sum(block[148:156]) + 8 * 32
            blocks[n] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


@pytest.mark.parametrize("form", FORMATS)
def test_fuzz(tmp_path, form):
    long = "folder/" * 12 + "k" * (12 if form == "ustar" else 120)
    members = [*pairs(2), *[(f"{long}.{s}", b"longer") for s in ("jpg", "txt")]]
    file = written(tmp_path, members, form=FORMATS[form])
    reader = Tar("train", dict(train=str(file)))
    for repaired in (bytes, sealed):
        print(form, repaired.__name__, survives(lambda: reader.read(str(file)), file, repaired=repaired))
