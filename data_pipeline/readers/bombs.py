"""Pages that would take the parser's time or the machine's memory, told before they are parsed.

HTML's own rules have three costs that grow with the square of a page: the depth of open elements, which is searched at
most tags (100,000 <div>: 18 s); formatting elements that are left open, of which every later paragraph gets copies
(2,000 times <font id=1><p>, 33 kB: 2 million nodes, 0.7 GB); and attributes of one tag (200,000: a minute).
https://html.spec.whatwg.org/multipage/parsing.html
"""

import re

from data_pipeline.documents import RecordError

# Browsers stop at 512.
MAX_DEPTH = 1000
MAX_COPIES = 1_000_000
MAX_TAG = 50_000

MANY_TAGS = 10_000
TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)(\s*>)?")
# Without attributes at most three alike are copied, and an <a> ends the one before.
FORMATTING = frozenset("b big code em font i s small strike strong tt u".split())
FORMATTED = re.compile(rf"<(?:{'|'.join(FORMATTING)})[\s/]", re.I)
# Elements that hold nothing, or that end where the next one begins.
SHALLOW = frozenset(
    "area base br col embed hr img input link meta source track wbr p li dt dd td th tr tbody thead option".split()
)
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")


def check(html: str):
    """Raises: RecordError: a page should not be parsed. It has no name of the page yet."""
    tags = html.count("<")
    # There are fewer copies than tags, squared.
    if tags > MANY_TAGS or (tags**2 > MAX_COPIES and len(FORMATTED.findall(html)) * tags > MAX_COPIES):
        _check_tags(html)
    if len(html) > MAX_TAG:
        for piece in html.split("<"):
            if len(piece) > MAX_TAG and piece[0].isalpha():
                length = len(QUOTED.sub("", piece).partition(">")[0])
                if length > MAX_TAG:
                    raise RecordError("", f"one of its tags has {length:,} characters outside quotes")


def _check_tags(html: str):
    depth = left_open = copies = 0
    for end, name, bare in TAG.findall(html):
        name = name.lower()
        if name in FORMATTING:
            if end or not bare:
                left_open = max(0, left_open + (-1 if end else 1))
        elif name not in SHALLOW:
            depth = max(0, depth + (-1 if end else 1))
            if depth > MAX_DEPTH:
                raise RecordError("", f"its tags are nested more than {MAX_DEPTH:,} deep")
        if not end:
            copies += left_open
            if copies > MAX_COPIES:
                raise RecordError("", f"<{name}> and others like it are left open: more than {MAX_COPIES:,} copies")
