"""Web archives as interleaved documents: Common Crawl, Heritrix, wget, browsertrix."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from data_pipeline.documents import Document, Media, RecordError
from data_pipeline.readers.archive import HEAD, Archive, Record, mime, opened_archive, response
from data_pipeline.readers.file_reader import FileReader
from data_pipeline.readers.page import decoded, page_parts, parser

log = logging.getLogger(__name__)
HTML = ("text/html", "application/xhtml+xml")
UNKNOWN = ("", "application/octet-stream", "binary/octet-stream")
IMAGE = re.compile(r"\.(jpe?g|png|gif|webp|avif|bmp|tiff?)($|\?)", re.I)


class Warc(FileReader):
    """Kind `warc`: `.warc` or `.arc`, plain, with `.gz` or `.zst`: the HTML pages in them, with their pictures.

    A page is every answer with status 200 that is HTML, see `page.page_parts`. Its pictures are those that the same
    file has, at whatever place, and data: URLs. Those that are nowhere are left out; the log counts them by file. So a
    file is read twice, first for the places of its pictures.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`: "crawl/*.warc.gz".
    """

    def __init__(self, split: str, splits: dict[str, str | Sequence[str]]):
        super().__init__(split, splits)
        parser()  # before anything begins, as it may not be installed

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        pages = shown = missing = 0
        with opened_archive(path) as archive:
            places = _places(archive)

            def find(url: str) -> Media | None:
                offset = places.get(_key(url))
                record = None if offset is None else archive.at(offset)
                try:
                    answer = record and response(record)
                except RecordError:
                    return None
                return Media("image", answer.data) if answer else None

            for where, record in archive.scan():
                try:
                    if isinstance(record, RecordError):
                        raise record
                    page = response(record)
                    if page is None or page.mime not in HTML:
                        continue
                    parts, left_out = page_parts(decoded(page.data, page.charset), record.url, find)
                    if not parts:
                        raise RecordError("", f"{record.url} has neither text nor pictures")
                except RecordError as error:
                    yield RecordError(where, error.why)
                    continue
                pages, missing = pages + 1, missing + left_out
                shown += sum(isinstance(part, Media) for part in parts)
                yield Document(tuple(parts), where)
        log.info("%s: %d pages with %d pictures; %d more are not in it", path, pages, shown, missing)


def _places(archive: Archive) -> dict[bytes, int]:
    """The offset of each picture by its `_key`."""
    places = {}
    try:
        for _, record in archive.scan(HEAD):
            if not isinstance(record, RecordError) and record.offset is not None and _may_be_picture(record):
                places.setdefault(_key(record.url), record.offset)
    except RecordError:  # of the file; who reads it the second time tells of it
        pass
    return places


def _may_be_picture(record: Record) -> bool:
    found = mime(record)
    if found is None or "svg" in found:
        return False
    return found.startswith("image/") or (found in UNKNOWN and bool(IMAGE.search(record.url)))


def _key(url: str) -> bytes:
    """The same for http and https, for a part of the page, and for characters that are escaped or not."""
    url = quote(re.sub("^https?:", "", url.strip().partition("#")[0]), "%/:=&?~+!$,;'@()*[]|", errors="replace")
    return hashlib.blake2b(url.encode(), digest_size=12).digest()
