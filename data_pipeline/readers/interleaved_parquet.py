"""OBELICS and OmniCorpus: a page a row, lists of images and texts of the same length.

https://arxiv.org/abs/2306.16527, https://huggingface.co/datasets/HuggingFaceM4/OBELICS;
https://arxiv.org/abs/2406.08418, https://huggingface.co/datasets/OpenGVLab/OmniCorpus-CC
"""

import contextlib
import os.path
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.documents import Absent, DataError, Document, FileError, Media, RecordError
from data_pipeline.readers import digest, parquet
from data_pipeline.readers.file_reader import FileReader
from data_pipeline.readers.interleaved import in_order
from data_pipeline.readers.url_store import UrlStore
from data_pipeline.template import unknown

# What OBELICS has where a page begins another subject; its authors train on an end of sentence there (A.1.2).
END = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
PLACEHOLDER = "<image>"


class InterleavedParquet(FileReader):
    """Kind `interleaved_parquet`: columns `images` and `texts`, where each position has one of the two.

    An image is an address, looked up in `store`, or its bytes, or a struct of bytes and path. As in OBELICS, one that
    was not downloaded is left out and the rest of its page stays; for each such page an `Absent` is counted. Images
    that OmniCorpus's `valid_image` refuses are left out without a word. A page that says that it is several becomes
    several documents.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      store: an index that `data_pipeline.readers.url_store` made; needed where images are addresses.

    Raises:
      DataError: the first file has no such columns, or there is no such store.
    """

    def __init__(self, split: str, splits: dict[str, str | Sequence[str]], store: str = ""):
        super().__init__(split, splits)
        self._store = store
        if store:
            UrlStore(store).close()
            self.fingerprint = digest(self.fingerprint, os.path.getsize(os.path.expanduser(store)))
        for path in self._files:
            try:
                schema = parquet.schema(path)
            except FileError:
                continue  # it is damaged, and counted when it is read
            self._columns(path, schema)
            break

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        store = UrlStore(self._store) if self._store else None
        with contextlib.closing(store) if store else contextlib.nullcontext():
            for number, row in parquet.rows(path, lambda schema: self._columns(path, schema)):
                where = f"{path}:{number}"
                try:
                    if isinstance(row, RecordError):
                        raise row
                    items, absent = _items(row, store.find if store else _no_store)
                    pages = _split(items)
                    for n, page in enumerate(pages):
                        yield Document(tuple(in_order(page, "\n\n")), f"{where}.{n}" if len(pages) > 1 else where)
                    if absent:
                        yield Absent(where, f"{absent} of its images were not downloaded")
                except FileError as error:
                    yield error
                except RecordError as error:
                    yield RecordError(where, error.why)

    def _columns(self, path: str, schema: Any) -> list[str]:
        from pyarrow import types

        for name in ("images", "texts"):
            if name not in schema.names:
                raise FileError(path, f"column {unknown(name, schema.names)}")
            column = schema.field(name).type
            if not (types.is_list(column) or types.is_large_list(column)):
                raise FileError(path, f"column {name} is {column}, no list")
        images = schema.field("images").type.value_type
        fit = (types.is_struct, types.is_binary, types.is_large_binary, types.is_null)
        if not self._store and not any(fits(images) for fits in fit):
            raise DataError(f"{path}: its images are addresses; give a store, see data_pipeline/readers/url_store.py")
        return ["images", "texts", *(["valid_image"] if "valid_image" in schema.names else [])]


def _items(row: dict[str, Any], find: Callable[[str], Media | None]) -> tuple[list[str | Media], int]:
    """Texts and images of a page in order, and how many images are not there.

    Raises:
      RecordError: without the record's name; a position has both, or the lists do not fit each other.
    """
    images, texts = row["images"], row["texts"]
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        shown = [f"{len(each)} {name}" if isinstance(each, list) else f"no {name}" for name, each in row.items()]
        raise RecordError("", f"images and texts must be lists of one length; it has {', '.join(shown[:2])}")
    refused = _refused(row.get("valid_image"), images)
    items, absent = [], 0
    for n, (image, text) in enumerate(zip(images, texts, strict=True)):
        if text not in (None, PLACEHOLDER):
            if image is not None:
                raise RecordError("", f"has an image and a text at position {n}")
            if not isinstance(text, str):
                raise RecordError("", f"its text {n} is none: {str(text)[:40]}")
            items.append(text)
        elif n not in refused:
            found = _image(image, find)
            absent += found is None
            items += [found] if found else []
    return items, absent


def _refused(valid: Any, images: Sequence[Any]) -> set[int]:
    """Positions of images that `valid_image`, a list with one value an image, does not want."""
    if valid is None:
        return set()
    positions = [n for n, image in enumerate(images) if image is not None]
    if not isinstance(valid, list) or len(valid) != len(positions):
        raise RecordError("", f"valid_image does not have one value for each of the {len(positions)} images")
    return {n for n, wanted in zip(positions, valid, strict=True) if not wanted}


def _image(image: Any, find: Callable[[str], Media | None]) -> Media | None:
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        return find(image)
    if image and not isinstance(image, bytes):
        raise RecordError("", f"one of its images is {str(image)[:40]}; images are bytes or addresses")
    return Media("image", image) if image else None


def _no_store(url: str) -> None:
    return None


def _split(items: Sequence[str | Media]) -> list[list[str | Media]]:
    """The documents of a page; one without a word or an image is none."""
    pages = [[]]
    for item in items:
        first, *others = item.split(END) if isinstance(item, str) else [item]
        pages[-1].append(first.strip() if others else first)
        pages += [[other.strip()] for other in others]
    full = [page for page in pages if any(isinstance(item, Media) or item.strip() for item in page)]
    return full or [[]]
