"""HTML files in folders, with pictures beside."""

import gzip
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.documents import DataError, FileError, Media, Place, RecordError, Text
from data_pipeline.media import host
from data_pipeline.readers import html as html_module
from data_pipeline.readers import make_reader
from data_pipeline.readers.html import Html
from tests.data_pipeline.readers.fuzz import survives

WEBSRC = Path(__file__).parents[3] / "../shared/data/websrc_sample"
HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")


def png():
    file = io.BytesIO()
    Image.new("RGB", (80, 64), "red").save(file, "PNG")
    return file.getvalue()


def read(pattern, **keys):
    reader = Html("train", dict(train=str(pattern)), **keys)
    return [each for shard in reader.shards() for each in reader.read(shard)]


@pytest.fixture
def site(tmp_path):
    for folder in "a/b", "images", "empty":
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "images" / "x y.png").write_bytes(png())
    (tmp_path / "a" / "z.png").write_bytes(png())
    (tmp_path / "index.html").write_text("<p>Index")
    (tmp_path / "a" / "1.html").write_text("<p>One<img src='../images/x%20y.png?v=2#f'>two<img src='z.png'>")
    (tmp_path / "a" / "b" / "2.html").write_text("<p>Three<img src='/images/x y.png'><img src=no.png>")
    return tmp_path


def test_pages_of_all_folders_and_pictures_by_path(site):
    one, two, index = read(f"{site}/**/*.html")
    picture = Media("image", png(), Place(f"{site}/images/x y.png", 0, len(png())))
    other = Media("image", png(), Place(f"{site}/a/z.png", 0, len(png())))
    assert one.parts == (Text("One"), picture, Text("two"), other)
    assert two.parts == (Text("Three"), picture) and two.where == f"{site}/a/b/2.html"
    assert index.parts == (Text("Index"),)


@pytest.mark.parametrize(
    "address",
    ["../../secret.png", "/../secret.png", "%2e%2e/secret.png", "file:///{0}/secret.png", "http://h/z.png", ".", "",
     "?", "a\0b", "x" * 5000, "b", "1.html", "s.svg", "\udcff.png", "%ff.png", "//h/z.png"],
)  # fmt: skip
def test_what_is_no_picture_below_the_pages_is_left_out(site, address):
    (site.parent / "secret.png").write_bytes(png())
    (site / "a" / "s.svg").write_text("<svg/>")
    page = f"<p>x<img src='{address.format(site.parent)}'>"
    (site / "a" / "1.html").write_text(page, errors="surrogateescape")
    assert read(f"{site}/a/**/*.html")[0].parts == (Text("x"),)


def test_a_shard_is_a_group_of_files(site, monkeypatch):
    monkeypatch.setattr(html_module, "GROUP", 4)
    for n in range(10):
        (site / f"{n}.html").write_text(f"<p>Page {n}")
    reader = Html("train", dict(train=f"{site}/*.html"))
    assert len(reader.shards()) == 3
    assert [len(list(reader.read(shard))) for shard in reader.shards()] == [4, 4, 3]
    shares = dict(train=f"{site}/*.html[30%:]", validation=f"{site}/*.html[:30%]")
    readers = [Html(split, shares) for split in shares]
    found = [{document.where for shard in r.shards() for document in r.read(shard)} for r in readers]
    assert len(found[0]) + len(found[1]) == 11 and not found[0] & found[1]


def test_a_file_that_cannot_be_read_costs_itself(site, monkeypatch):
    (site / "a" / "1.html").write_text("")
    (site / "a" / "2.html").write_text("<div>" * 100_000)
    (site / "a" / "3.html.gz").write_bytes(gzip.compress(b"<p>Three")[:-9])
    (site / "a" / "4.html.gz").write_bytes(gzip.compress(b"<p>Four"))
    (site / "a" / "5.html").write_bytes(b"\xff\xfe" + "<p>Fünf".encode("utf-16le") + b"\0")
    empty, deep, cut, four, five = read(f"{site}/a/*.html*")
    assert "neither text nor pictures" in empty.why and "nested" in deep.why and type(cut) is FileError
    assert [error.where for error in (empty, deep, cut)] == [f"{site}/a/{n}" for n in ("1.html", "2.html", "3.html.gz")]
    assert four.parts == (Text("Four"),) and five.parts[0].text.startswith("Fünf")
    monkeypatch.setattr(html_module, "MAX_SIZE", 5)
    assert "more than 5 bytes" in read(site / "index.html")[0].why


def test_what_frames_the_pages_of_one_site_can_be_left_out(site):
    (site / "index.html").write_text("<ul class=docnav><li>Next</ul><div id=title>x</div><p>Text")
    assert read(site / "index.html", leave_out="ul.docnav, #title")[0].parts == (Text("Text"),)
    for selectors in "p[", "a,,b", "{}", ":nonsense":
        with pytest.raises(DataError, match="is no list of CSS selectors"):
            read(site / "index.html", leave_out=selectors)


def test_the_kind_is_known(site):
    class Config(dict):
        __getattr__ = dict.__getitem__

    reader = make_reader(Config(kind="html", splits=dict(train=f"{site}/*.html")), "train")
    assert isinstance(reader, Html) and reader.size == 8


@pytest.mark.skipif(not WEBSRC.exists(), reason="needs the sample of WebSRC")
def test_pages_of_websrc():
    found = read(WEBSRC / "**/*.html")
    texts = [" ".join(part.text for part in each.parts) for each in found]
    assert len(found) == 18 and all(len(text) > 60 for text in texts)


@pytest.mark.skipif(not HANDBOOK.exists(), reason="needs Debian's package debian-handbook")
def test_the_debian_handbook_has_text_and_pictures():
    found = read(HANDBOOK / "*.html")
    pictures = [part for each in found for part in each.parts if isinstance(part, Media)]
    assert not any(isinstance(each, RecordError) for each in found) and len(pictures) > 50
    assert all(host("image").decode(picture.data) for picture in pictures[::10])


def test_fuzz(site):
    file = site / "a" / "1.html"
    file.write_text("<meta charset=utf-8>" + file.read_text() + "<table><tr><td>é</table><pre> x</pre>" * 3)
    reader = Html("train", dict(train=str(file)))
    shutil.copy(site / "a" / "z.png", site / "a" / "x.png")
    print(survives(lambda: reader.read(str(file)), file))
