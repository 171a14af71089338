"""What becomes of a page: reading order, what is left out, pictures, encodings, and pages that are made to hurt."""

import base64
import codecs
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Media, RecordError, Text
from data_pipeline.readers.page import decoded, page_parts

PNG = b"\x89PNG\r\n\x1a\n"


def shown(html, missing=(), base="http://h/d/p.html"):
    """Texts, and in place of a picture its address in a list of its own."""
    parts, left_out = page_parts(html, base, lambda url: None if url in missing else Media("image", PNG + url.encode()))
    return [p.text if isinstance(p, Text) else [p.data[8:].decode()] for p in parts], left_out


@pytest.mark.parametrize(
    "html, text",
    [
        ("<h1>A\n <b>b</b>c</h1><p>d<p>e", "A bc\nd\ne"),
        ("a<div>b</div>c<br>d", "a\nb\nc\nd"),
        ("<ul><li>a<ul><li>b</ul>c<li>d</ul>", "a\nb\nc\nd"),
        ("<table><caption>T</caption><tr><th>a<td>b<tr><td>c</table>", "T\na\nb\nc"),
        ("a<pre>\n  b\n    c  d\n</pre>e", "a\n  b\n    c  d\ne"),
        ("<figure><figcaption>a &amp; &eacute;&nbsp;b</figcaption></figure>", "a & é b"),
        ("<script>x</script><style>x</style><nav>x</nav>a<aside>x</aside><footer>x</footer><p hidden>x", "a"),
        ("<header>x</header><article><header>a</header>b</article><div role=navigation>x</div>", "a\nb"),
        ("<form>x<input value=x></form><form><p>a</p><button>x</button></form><noscript>x</noscript>", "a"),
        ("<nav hidden>x<nav>x</nav></nav><!-- x --><template>x</template><svg><text>x</text></svg>a", "a"),
        ("<html><head><title>x</title></head><body>a&#xD800;b\0c", "a\ufffdbc"),
    ],
)
def test_the_lines_of_a_page(html, text):
    assert shown(html) == ([text], 0)


@pytest.mark.parametrize("html", ["", " ", "<frameset>", "<p>", "<body hidden>", "<base href>", "<img>", "<img src>"])
def test_pages_without_anything(html):
    assert shown(html) == ([], 0)


@pytest.mark.parametrize(
    "tag, addresses",
    [
        ("<img src=a.png>", ["http://h/d/a.png"]),
        ("<img src=' /a b.png\n'>", ["http://h/a b.png"]),
        ("<base href=//i/x/><img src=a.png>", ["http://i/x/a.png"]),
        ("<img src=wait.gif data-src=a.png>", ["http://h/d/a.png"]),
        ("<img src='data:image/gif;base64,R0lGODlh' data-srcset='s.jpg 1x, l.jpg 2x'>", ["http://h/d/l.jpg"]),
        ("<img srcset='s.jpg 320w,l.jpg 640w,m.jpg 480w'>", ["http://h/d/l.jpg"]),
        ("<picture><source srcset='none.webp'><img src=none.png srcset=a.png></picture>", ["http://h/d/a.png"]),
        ("<picture><source srcset=a.webp><img src=none.png></picture>", ["http://h/d/a.webp"]),
        ("<noscript><img src=a.png></noscript>", ["http://h/d/a.png"]),
        ("<img src='http://[x/a.png'>", ["http://h/d/p.html"]),
    ],
)
def test_where_pictures_are(tag, addresses):
    missing = {f"http://h/d/none.{s}" for s in ("webp", "png")}
    assert shown(f"a {tag} b", missing) == (["a", addresses, "b"], 0)


def test_pictures_stand_in_place_and_missing_ones_are_counted_once():
    html = "<p>a <img src=1> b</p><img src=2><img src=no><p>c</p><img src=no><img src=1>d<img src=3>"
    expected = ["a", ["http://h/d/1"], "b", ["http://h/d/2"], "c\nd", ["http://h/d/3"]]
    assert shown(html, {"http://h/d/no"}) == (expected, 1)


def test_pictures_in_the_page_itself():
    gif = b"GIF89a" + bytes(range(50))
    quoted = "".join(f"%{byte:02x}" for byte in gif)
    for url in f"data:image/gif;base64,{base64.b64encode(gif).decode()}", f"data:image/gif,{quoted}":
        assert page_parts(f"<img src='{url}'>", "", None)[0] == [Media("image", gif)]
    for url in (
        "data:image/svg+xml,<svg/>",
        "data:image/gif;base64,R",
        "data:",
        "data:text/html,GIF89a",
        "data:image/png,",
    ):
        assert page_parts(f"<img src='{url}'>", "", None) == ([], 1)


def test_what_is_no_picture_is_left_out():
    for data in b"<html>404", b"<svg/>", b"":
        assert page_parts("<img src=a.jpg>", "", lambda url, data=data: Media("image", data)) == ([], 1)


@pytest.mark.parametrize(
    "data, charset, text",
    [
        ("é".encode(), None, "é"),
        ("é".encode("latin1"), None, "é"),
        (b"\x93a\x94", "ISO-8859-1", "“a”"),
        ("é".encode(), '"UTF-8"', "é"),
        (codecs.BOM_UTF8 + "é".encode(), "latin1", "é"),
        ("é".encode("utf-16"), None, "é"),
        ("日本".encode("cp932"), "shift_jis", "日本"),
        (b"<meta charset=gb2312>" + "汉语".encode("gb18030"), None, "汉语"),
        (b'<META http-equiv=x content="text/html; CHARSET=koi8-r">' + "да".encode("koi8-r"), "nonsense", "да"),
        (b"<meta charset=utf-16>" + "é".encode(), None, "é"),
        (b"<?xml version='1.0' encoding='windows-1251'?>" + "да".encode("cp1251"), None, "да"),
        ("é".encode(), "hex", "é"),
        ("é".encode(), "punycode", "é"),
        ("é".encode(), "iso-8859-12", "é"),
        ("é".encode(), "windows-1259", "é"),
        (b"a\xffb", "utf-8", "a\ufffdb"),
    ],
)
def test_encodings(data, charset, text):
    assert decoded(data, charset).endswith(text)


@pytest.mark.parametrize("tag", ["div", "nav", "ul><li", "table><tr><td", "a><div", "b", "p", "svg", "noscript", "pre"])
def test_nesting_neither_recurses_nor_takes_long(tag):
    start = time.perf_counter()
    for depth in 300, 100_000:
        try:
            shown(f"<{tag}>" * depth + "x")
        except RecordError as error:
            assert "nested more than 1,000 deep" in error.why
            assert depth > 300
    assert time.perf_counter() - start < 5


def test_megabytes_in_every_place_take_no_long_time():
    much, start = "x" * 1_000_000, time.perf_counter()
    for html in (
        f"<p>{much}",
        f"<img srcset='{much}'>",
        f"<img srcset='{'a 1x,' * 100_000}'>",
        f"<base href='{much}'>",
    ):
        shown(html)
    for html in ("<p>a</p>" * 100_000, "<img src=a.png>" * 30_000, "<br>" * 100_000, "&nbsp;" * 100_000):
        assert len(shown(html)[0]) <= 1
    decoded(b"<meta " * 500_000)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "html",
    [
        "".join(f"<font color={i}><p>x" for i in range(20_000)),
        "".join(f"<B id='{i}'>" for i in range(900)) + "<p>x" * 200_000,
        "".join(f"<i id={i}>" for i in range(5000)) + "<p>x" * 5000 + "</i>" * 5000,
        "<p " + " ".join(f"a{i}" for i in range(300_000)) + ">x",
        "<p a='>' " + " ".join(f"a{i}=''" for i in range(300_000)) + ">x",
    ],
)
def test_small_pages_that_would_take_gigabytes_or_minutes_are_refused(html):
    with pytest.raises(RecordError, match="copies|characters outside quotes"):
        shown(html)


def test_large_pages_that_do_not_are_read():
    html = (
        "<p><b class=x>y</b> <font id=1>z</font>" * 20_000
        + f"<img src='data:image/png;base64,iVBORw0K{'AAAA' * 99_999}'>"
    )
    assert len(shown(html + "a < " + "b" * 99_999 + "<p title='" + "long " * 50_000 + "'>c")[0]) == 3


TOKENS = "<div> </div> <p> <table> <td> </table> <nav> </nav> <pre> </pre> <img> <form> </form> <a> </a> a b \n".split(
    " "
)
TOKENS += [
    "<img src=1>",
    "<img src=2 srcset='3 2x, 4'>",
    "<picture><source srcset=5>",
    "<noscript>",
    "<!--",
    "&#",
    "<select>",
]


@given(st.lists(st.sampled_from(TOKENS), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_soup_becomes_lines_and_pictures(tokens):
    parts, _ = shown("".join(tokens))
    for part, following in zip(parts, [*parts, []][1:], strict=True):
        assert isinstance(part, list) or (part.strip() and not isinstance(following, str))
    assert len([p for p in parts if isinstance(p, list)]) == len({p[0] for p in parts if isinstance(p, list)})
