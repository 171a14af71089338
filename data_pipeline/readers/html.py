"""HTML files in folders: documentation, books, saved sites."""

import logging
import posixpath
from collections.abc import Iterator, Sequence
from functools import partial
from urllib.parse import unquote

from data_pipeline.documents import DataError, Document, Media, RecordError
from data_pipeline.files import decompressed
from data_pipeline.readers.file_reader import FileReader, beside
from data_pipeline.readers.page import LEFT_OUT, decoded, page_parts, parser

log = logging.getLogger(__name__)
# Files of a shard.
GROUP = 1000
MAX_SIZE = 1 << 26


class Html(FileReader):
    """Kind `html`: HTML files, also with `.gz`, `.zst`, `.xz` or `.bz2`; see `page.page_parts`.

    Pictures are files that a page names by relative path, in the folder that all pages have in common or below. Those
    that are not there, and those that the page has elsewhere on the web, are left out; the log counts them by file.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`: "/usr/share/doc/debian-handbook/html/en-US/*.html", or with
        folders below "site/**/*.html".
      leave_out: CSS selectors of what frames the pages of this site, beside what frames pages of most: "ul.docnav,
        #title".

    Raises:
      DataError: `leave_out` cannot be read, or the parser is not installed.
    """

    def __init__(self, split: str, splits: dict[str, str | Sequence[str]], leave_out: str = ""):
        super().__init__(split, splits)
        self._leave_out = f"{LEFT_OUT}, {leave_out}" if leave_out else LEFT_OUT
        try:
            page_parts("<p>", "", self._picture, self._leave_out)
        except parser().SelectolaxError as error:
            raise DataError(f"leave_out {leave_out!r} is no list of CSS selectors: {error}") from error
        self._root = posixpath.commonpath([posixpath.dirname(path) for path in self._files])

    def shards(self) -> Sequence[str]:
        """The first file of each thousand."""
        return self._files[::GROUP]

    def read(self, shard: str) -> Iterator[Document | RecordError]:
        first = self._files.index(shard)
        for path in self._files[first : first + GROUP]:
            yield from super().read(path)

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        with decompressed(path) as file:
            data = file.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            raise RecordError(path, f"has more than {MAX_SIZE:,} bytes")
        try:
            parts, missing = page_parts(decoded(data), "", partial(self._picture, path), self._leave_out)
        except RecordError as error:
            raise RecordError(path, error.why) from error
        if not parts:
            raise RecordError(path, "has neither text nor pictures")
        if missing:
            log.info("%s: %d of its pictures are not there", path, missing)
        yield Document(tuple(parts), path)

    def _picture(self, path: str, url: str) -> Media | None:
        name = unquote(url.partition("#")[0].partition("?")[0])
        folder = "" if name.startswith("/") else posixpath.relpath(posixpath.dirname(path), self._root)
        try:
            return Media("image", *beside(f"{self._root}/", posixpath.join(folder, name.lstrip("/"))))
        except RecordError:
            return None
