"""Web archives, written as the standards say: whole, compressed, lying, damaged and cut off."""

import gzip
import io
import logging
import random
from pathlib import Path

import fsspec
import pytest
from backports import zstd
from PIL import Image

from data_pipeline.documents import Document, FileError, Media, RecordError, Text
from data_pipeline.media import host
from data_pipeline.readers import archive
from data_pipeline.readers.warc import Warc
from tests.data_pipeline.readers.fuzz import survives

SAMPLES = Path(__file__).parents[3] / "../shared/data/warc_samples"


def png(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (80, 64), colour).save(file, "PNG")
    return file.getvalue()


def http(body, mime="text/html", status="200 OK", **headers):
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {mime}",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def warc(url, block, kind="response", mime="application/http; msgtype=response", length=None):
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {mime}\r\n"
    return f"{header}Content-Length: {len(block) if length is None else length}\r\n\r\n".encode() + block + b"\r\n\r\n"


def arc(url, block, mime="text/html"):
    return f"{url} 10.0.0.1 20140216050221 {mime} {len(block)}\n".encode() + block + b"\n"


def page(n, tags=""):
    return warc(f"http://h/{n}", http(f"<p>Page {n}.</p>{tags}".encode()))


INFO = warc("", b"software: none\r\n", "warcinfo", "application/warc-fields")
ARC_INFO = arc(
    "filedesc://a.arc", b"1 0 Someone\nURL IP-address Archive-date Content-type Archive-length\n", "text/plain"
)
FORMS = {
    "a.warc": b"".join,
    "a.warc.gz": lambda records: b"".join(map(gzip.compress, records)),
    "one.warc.gz": lambda records: gzip.compress(b"".join(records)),
    "a.warc.zst": lambda records: b"".join(map(zstd.compress, records)),
    "one.warc.zst": lambda records: zstd.compress(b"".join(records)),
}


def read(path):
    reader = Warc("train", dict(train=str(path)))
    return [each for shard in reader.shards() for each in reader.read(shard)]


def texts(found):
    return [part.text for each in found if isinstance(each, Document) for part in each.parts if isinstance(part, Text)]


def written(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_pictures_come_from_anywhere_in_the_file(tmp_path, form, caplog):
    before, after = png("red"), png("blue")
    html = "<p>One</p><img src='/x.png'><p>two</p><img src='y%20z.png#part'>three<img src=nowhere.png>"
    records = [
        INFO,
        warc("http://h/x.png", http(before, "image/png")),
        warc("http://h/d/p", http(html.encode())),
        warc("http://h/d/p", b"GET", "request", "application/http; msgtype=request"),
        warc("https://h/d/y z.png", after, "resource", "image/png"),
    ]
    caplog.set_level(logging.INFO)
    (found,) = read(written(tmp_path / form, FORMS[form](records)))
    images = (Media("image", before), Media("image", after))
    assert found.parts == (Text("One"), images[0], Text("two"), images[1], Text("three"))
    assert "1 pages with 2 pictures; 1 more are not in it" in caplog.text


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_arc(tmp_path, packed):
    records = [
        ARC_INFO,
        arc("http://h/a b", http(b"<p>One<img src=x.png>")),
        arc("dns:h", b"1.2.3.4", "text/dns"),
        arc("http://h/x.png", http(png(), "image/png"), "image/png"),
    ]
    (found,) = read(written(tmp_path / "a.arc", b"".join(map(packed, records))))
    assert found.parts == (Text("One"), Media("image", png()))


def chunked(data):
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:5], data[5:])) + b"0\r\n\r\n"


CUT_OFF = gzip.compress(b"<p>Here" * 99, mtime=0)[:30]


@pytest.mark.parametrize(
    "answer",
    [
        http(gzip.compress(b"<p>Here", mtime=0), Content_Encoding="gzip"),
        http(chunked(b"<p>Here"), Transfer_Encoding="chunked"),
        http(chunked(gzip.compress(b"<p>Here", mtime=0)), Transfer_Encoding="chunked", Content_Encoding="gzip"),
        http(b"<p>Here", Content_Encoding="gzip"),
        http(b"<p>Here", Transfer_Encoding="chunked"),
        http(b"<p>Here", Content_Encoding="nonsense"),
        http(b"<p>Here", Content_Length="999999"),
        http(b"<p>Here", "application/xhtml+xml; charset=utf-8"),
    ],
)
def test_answers_are_decoded_and_those_that_were_already_are_not(tmp_path, answer):
    assert texts(read(written(tmp_path / "a.warc", warc("http://h/", answer)))) == ["Here"]


@pytest.mark.parametrize(
    "answer, why",
    [
        (http(b""), "http://h/ has neither text nor pictures"),
        (
            http(gzip.compress(b"<p>Here" * 99, mtime=0)[:30] + b"\xff" * 20, Content_Encoding="gzip"),
            "cannot be decoded: Gzip",
        ),
        (http(gzip.compress(bytes(1 << 27)), Content_Encoding="gzip"), "67,108,864 bytes or more"),
        (http(b"<div>" * 100_000), "nested more than"),
        (b"nothing of HTTP", "no status of HTTP"),
    ],
)
def test_an_answer_that_cannot_be_read_costs_itself_and_is_named(tmp_path, answer, why):
    path = written(tmp_path / "a.warc", INFO + warc("http://h/", answer) + page(1))
    error, document = read(path)
    assert type(error) is RecordError and why in error.why and error.where == f"{path}:{len(INFO)}"
    assert texts([document]) == ["Page 1."]


def test_what_is_no_page_is_passed_over(tmp_path):
    records = [
        warc("http://h/1", http(b"<p>x", status="404 Not Found")),
        warc("http://h/2", http(b"<p>x", status="301 Moved", Location="/")),
        warc("http://h/3", http(b"<p>x", "text/plain")),
        warc("http://h/4", http(b"<p>x"), "revisit"),
        warc("http://h/5", b"<p>x", "metadata", "text/html"),
    ]
    assert read(written(tmp_path / "a.warc", b"".join(records))) == []


def test_one_picture_a_thousand_times_is_one_picture(tmp_path):
    data = page(1, "<img src=x.png>" * 1000) + warc("http://h/x.png", http(png(), "image/png"))
    (found,) = read(written(tmp_path / "a.warc", data))
    assert len(found.parts) == 2


@pytest.mark.parametrize("mime, url", [("image/svg+xml", "x.svg"), ("text/html", "x.jpg"), ("image/png", "x.png")])
def test_what_is_no_picture_is_left_out_and_the_page_is_not(tmp_path, mime, url):
    data = page(1, f"<img src={url}>") + warc(f"http://h/{url}", http(b"<svg>no pixels</svg>", mime, "200 OK"))
    found = read(written(tmp_path / "a.warc", data))
    assert found[0].parts == (Text("Page 1."),)


@pytest.mark.parametrize("length", [0, 20, 60, 400, 10**6, 10**25, -5, "x"])
@pytest.mark.parametrize("form", ["a.warc", "a.warc.gz"])
def test_a_record_that_lies_about_its_length_takes_no_others_along(tmp_path, form, length):
    lie = warc("http://h/x", http(b"<p>Lies." + b" and lies" * 20), length=length)
    records = [INFO, page(1), lie, *(page(n) for n in range(2, 6))]
    found = read(written(tmp_path / form, FORMS[form](records)))
    honest = [f"Page {n}." for n in range(1, 6)]
    assert [text for text in texts(found) if text in honest] == honest
    errors = [each for each in found if isinstance(each, RecordError)]
    assert errors and not any("WARC" in text for text in texts(found))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_of_a_file_that_was_cut_off_what_stands_before_is_read(tmp_path, form, share):
    noise = random.Random(0)
    records = [INFO] + [page(n, f"<p>{noise.randbytes(400).hex()}") for n in range(100)]
    data = FORMS[form](records)
    *before, last = read(written(tmp_path / form, data[: int(len(data) * share)]))
    assert isinstance(last, FileError) and last.where == str(tmp_path / form)
    assert all(isinstance(each, Document) for each in before)
    # A frame is unpacked in blocks of up to 128 kB.
    assert len(before) >= 100 * share - {"one.warc.zst": 99, "a.warc.zst": 10}.get(form, 3)


@pytest.mark.parametrize("form", FORMS)
def test_no_cut_passes_in_silence(tmp_path, form):
    records = [INFO, page(1), warc("http://h/1", b"GET / HTTP/1.1", "request"), page(2)]
    data = FORMS[form](records)
    ends = {len(FORMS[form](records[:n])) for n in range(5)} if form.startswith("a") else set()
    # The empty lines after a record: what lacks them may be a file of someone who did not write the last ones.
    ends |= {end - n for end in ends for n in range(5)} if form == "a.warc" else set()
    for cut in range(1, len(data)):
        found = read(written(tmp_path / form, data[:cut]))
        assert isinstance(found[-1] if found else None, FileError) or cut in ends
        assert texts(found) == ["Page 1.", "Page 2."][: len(texts(found))]


@pytest.mark.parametrize("form", ["a.warc", "a.warc.gz"])
def test_after_damage_the_next_records_are_read(tmp_path, form):
    records = [page(n, f"<p>{random.Random(n).randbytes(400).hex()}") for n in range(20)]
    data = bytearray(FORMS[form](records))
    for n in 3, 10:
        at = len(FORMS[form](records[:n]))
        data[at : at + 8] = b"damaged!"
    found = read(written(tmp_path / form, data))
    numbers = [int(text.split(".")[0][5:]) for text in texts(found)]
    lost = set(range(20)) - set(numbers)
    assert {3, 10} <= lost <= {2, 3, 9, 10} and numbers == sorted(set(numbers))
    errors = [each for each in found if not isinstance(each, Document)]
    assert len(errors) == 2 and all(type(error) is RecordError and "damaged" in error.why for error in errors)


def test_damage_in_a_large_file_of_junk_ends(tmp_path):
    junk = random.Random(0).randbytes(1 << 16) + archive.GZIP * 2000 + b"WARC/1.0\r\n" * 2000
    for head in b"WARC/1.0\r\n", archive.GZIP, b"", b"filedesc://x\n\n", b"\nhttp" * 9999:
        found = read(written(tmp_path / "a.warc", head + junk))
        assert isinstance(found[-1], FileError)
    assert "no web archive" in read(written(tmp_path / "a.warc", b""))[0].why


def test_a_disk_s_error_is_no_damage(tmp_path, monkeypatch):
    path = written(tmp_path / "a.warc", page(1))
    reader = Warc("train", dict(train=str(path)))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(reader.read(str(path)))


def test_an_archive_in_a_bucket_is_read_by_its_address():
    address = "memory://crawl/a.warc.gz"
    with fsspec.open(address, "wb") as file:
        file.write(FORMS["a.warc.gz"]([page(1, "<img src=x.png>"), warc("http://h/x.png", http(png(), "image/png"))]))
    assert [type(part) for part in read(address)[0].parts] == [Text, Media]


@pytest.mark.skipif(not SAMPLES.exists(), reason="needs the samples of web archives")
def test_samples_of_warcio_some_of_them_bad_on_purpose():
    pages, errors = {}, {}
    for path in sorted(SAMPLES.iterdir()):
        found = read(path)
        pages[path.name] = sum(isinstance(each, Document) for each in found)
        errors[path.name] = len(found) - pages[path.name]
    assert {name for name, n in errors.items() if n} == {"bad.arc", "example-space-in-url.arc", "example-trunc.warc"}
    without = {"example-digest.warc", "example-space-in-target-uri.warc.gz", "post-test.warc.gz"}
    assert {name for name, n in pages.items() if n != 1} == without | {name for name, n in errors.items() if n}


def mixture():
    tags = "<img src=x.png><div><ul><li>a<li>b</ul><pre> c</pre><img src='data:image/gif;base64,R0lGODlhAQAB'></div>"
    records = [INFO, page(1, tags), warc("http://h/x.png", http(png(), "image/png"))]
    return [*records, warc("http://h/2", http(gzip.compress(b"<p>Page 2.", mtime=0), Content_Encoding="gzip")), page(3)]


@pytest.mark.parametrize("form", [*FORMS, "a.arc"])
def test_fuzz(tmp_path, form):
    if form == "a.arc":
        pages = [http(b"<p>One<img src=x.png>"), http(png(), "image/png")]
        data = ARC_INFO + arc("http://h/1", pages[0]) + arc("http://h/x.png", pages[1]) + arc("http://h/2", pages[0])
    else:
        data = FORMS[form](mixture())
    file = written(tmp_path / form, data)
    reader = Warc("train", dict(train=str(file)))
    print(form, survives(lambda: reader.read(str(file)), file))


def test_pictures_can_be_decoded(tmp_path):
    (found, *_) = read(written(tmp_path / "a.warc", b"".join(mixture())))
    assert host("image").decode(found.parts[1].data).size == (80, 64)
