"""An HTML page as parts in reading order: lines of text, and pictures where they stand.

Lines are headings, paragraphs, items of lists, captions and cells of tables. What frames pages is left out: scripts,
styles, navigation, headers and footers outside articles, asides, forms without text. The tree is walked in a loop: a
page may be nested deeper than Python's stack is.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin

from data_pipeline.documents import DataError, Media, Text
from data_pipeline.readers import bombs
from data_pipeline.readers.pictures import from_base64, is_picture

LEFT_OUT = ",".join(
    (
        "script, style, template, iframe, object, embed, svg, canvas, audio, video, map",
        "nav, aside, menu, dialog, [role=navigation], [role=search], [role=banner], [role=contentinfo], [hidden]",
        "header:not(article header, main header), footer:not(article footer, main footer)",
        # Some sites put the entire page into one form.
        "form:not(:has(p, h1, h2, article)), input, button, select, textarea, label, datalist",
        # What pages show without scripts is mostly a request to switch them on, or a picture that is loaded late.
        "noscript:not(:has(img))",
        # Sphinx's links behind headings, whose text is a paragraph sign.
        "a.headerlink",
    )
)
BLOCKS = frozenset(
    "address article blockquote body caption center dd details dir div dl dt fieldset figcaption figure footer form h1 "
    "h2 h3 h4 h5 h6 header hgroup hr legend li main ol optgroup option p pre section summary table tbody td tfoot th "
    "thead tr ul".split()
)
# Where scripts that load pictures late keep the address; src is a placeholder then.
LATE = ("data-src", "data-original", "data-lazy-src", "data-lazy")
# Of one picture.
MAX_SIZES = 50
BETWEEN = re.compile(r",\s+|(?<=\d[wx]),")
LABEL = re.compile(rb"""(?:<meta[^>]{0,200}?charset|<\?xml[^>]{0,200}?encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I)
# Encodings that pages have, https://encoding.spec.whatwg.org: some are read as a larger one.
LARGER = {
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "ksc5601"), "cp949"),
    **dict.fromkeys(("iso-8859-11", "tis-620"), "cp874"),
    "iso-8859-9": "cp1254",
    "big5": "big5hkscs",
}
ENCODINGS = re.compile(r"(utf-?8|utf-?16(le|be)?|iso-?8859-\d+|(windows-|cp)125\d|euc-jp|iso-2022-jp|koi8-[ru])$")


def decoded(data: bytes, charset: str | None = None) -> str:
    """A page's text: by its byte order mark, `charset` of its HTTP header, its own label, as UTF-8 or as Windows-1252.

    What cannot be decoded becomes U+FFFD.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16le"), (b"\xfe\xff", "utf-16be")):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    if encoding := _encoding(charset):
        return data.decode(encoding, "replace")
    label = LABEL.search(data, 0, 2048)
    if encoding := _encoding(label and label[1].decode()):
        # A label that could be read is not written in UTF-16, whatever it says.
        return data.decode("utf-8" if encoding.startswith("utf") else encoding, "replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _encoding(label: str | None) -> str | None:
    label = (label or "").strip(" \"'").lower()
    if label in LARGER:
        return LARGER[label]
    try:
        return codecs.lookup(label).name if ENCODINGS.match(label) else None
    except LookupError:
        return None


def parser():
    """The library that parses pages.

    Raises:
      DataError: it is not installed.
    """
    try:
        import selectolax.lexbor
    except ImportError as error:
        raise DataError(f"pages are read with selectolax: pip install 'kosmos_jax[data]' ({error})") from error
    return selectolax.lexbor


def page_parts(
    html: str, base: str, find: Callable[[str], Media | None], leave_out: str = LEFT_OUT
) -> tuple[list[Text | Media], int]:
    """A page's parts, and how many of its pictures are left out since nobody has their bytes.

    A picture that stands there more than once is taken once.

    Args:
      base: address of the page, "" for pictures by relative path.
      find: the picture of an address that is joined to the base. Not called for data: URLs.
      leave_out: CSS selectors of elements that are no part of the text.

    Raises:
      RecordError: it should not be parsed, see `bombs`. It has no name of the page yet.
    """
    bombs.check(html)
    tree = parser().LexborHTMLParser(html)
    if tree.body is None:
        return [], 0
    if (first := tree.css_first("base[href]")) is not None:
        base = _joined(base, first.attributes["href"])
    for node in tree.body.css(leave_out):
        if node.parent is not None and node.tag != "body":
            node.decompose(recursive=False)  # it goes with all that is in it
    pictures, page = _Pictures(base, find), _Page()
    node, above = tree.body.first_child, []
    while node is not None:
        tag = node.tag
        if tag == "-text":
            page.line.append(node.text_content)
        elif tag == "img":
            if (picture := pictures.of(node)) is not None:
                page.add(picture)
        else:
            is_block, is_pre = tag in BLOCKS, tag == "pre"
            if page.line and (is_block or tag == "br"):
                page.end_line()
            if (below := node.first_child) is not None:
                page.preformatted += is_pre
                above.append((node, is_block, is_pre))
                node = below
                continue
        while (following := node.next) is None and above:
            node, is_block, is_pre = above.pop()
            if page.line and is_block:
                page.end_line()
            page.preformatted -= is_pre
        node = following
    page.end_text()
    return page.parts, pictures.missing


class _Page:
    """Parts as they are found. `line` is what stands in the line so far."""

    def __init__(self):
        self.parts, self.line, self.preformatted, self._lines = [], [], 0, []

    def end_line(self):
        text = "".join(self.line)
        text = text.strip("\n").rstrip() if self.preformatted else " ".join(text.split())
        self.line.clear()
        if text:
            self._lines.append(text)

    def end_text(self):
        self.end_line()
        if self._lines:
            self.parts.append(Text("\n".join(self._lines)))
            self._lines.clear()

    def add(self, picture: Media):
        self.end_text()
        self.parts.append(picture)


class _Pictures:
    """The pictures of a page, each once. `missing` counts those of which nobody has the bytes."""

    def __init__(self, base: str, find: Callable[[str], Media | None]):
        self.missing = 0
        self._base, self._find, self._seen = base, find, {}

    def of(self, node: Any) -> Media | None:
        """The picture that an element shows; None if there is none, or it was shown before."""
        addresses = [_joined(self._base, address) for address in _addresses(node)]
        if any(self._seen.get(address) for address in addresses):
            return None
        new = [address for address in addresses if address not in self._seen]
        for address in new:
            found = _inline(address) if address.startswith("data:") else self._find(address)
            self._seen[address] = found is not None and is_picture(found.data)
            if self._seen[address]:
                return found
        self.missing += bool(new)
        return None


def _addresses(node: Any) -> Iterator[str]:
    """Where an <img> says that its picture is, best first; a placeholder only if it says nothing else."""
    own = node.attributes
    sets = [own.get("data-srcset"), own.get("srcset")]
    if node.parent is not None and node.parent.tag == "picture":
        sets += [source.attributes.get("srcset") for source in node.parent.css("source")]
    found = [own[name] for name in LATE if own.get(name)]
    src = own.get("src")
    if src and not src.startswith("data:"):
        found.append(src)
    found += [address for text in sets if text for address in _largest_first(text)]
    return (address.strip() for address in found or [src] if address)


def _largest_first(srcset: str) -> list[str]:
    """The addresses of "small.jpg 320w, large.jpg 640w"."""
    pieces = [piece.split() for piece in BETWEEN.split(srcset, MAX_SIZES)[:MAX_SIZES]]
    pieces = [(_size(piece[-1]) if len(piece) > 1 else 1.0, piece[0].rstrip(",")) for piece in pieces if piece]
    return [address for _, address in sorted(pieces, key=lambda piece: -piece[0])]


def _size(descriptor: str) -> float:
    number = descriptor.rstrip("wxh,")
    return float(number) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number) else 1.0


def _joined(base: str, address: str | None) -> str:
    try:
        return urljoin(base, (address or "").replace("\n", "").replace("\t", ""))
    except ValueError:  # of what stands in brackets, as IPv6 does
        return base


def _inline(address: str) -> Media | None:
    """The picture in a URL "data:image/png;base64,iVBO..."."""
    header, _, data = address.partition(",")
    if not header.startswith("data:image/") or "svg" in header:
        return None
    data = unquote_to_bytes(data)
    data = from_base64(data) if header.endswith(";base64") else data
    return Media("image", data) if data else None
