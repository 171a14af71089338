"""OBELICS and OmniCorpus: a page a row, lists of images and texts of the same length.

https://arxiv.org/abs/2306.16527, https://huggingface.co/datasets/HuggingFaceM4/OBELICS;
https://arxiv.org/abs/2406.08418, https://huggingface.co/datasets/OpenGVLab/OmniCorpus-CC
"""

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


class Obelics(FileReader):
    """Kind `obelics`: columns `images` and `texts`, where each position has one of the two.

    An image is its bytes, {"bytes": ..., "path": ...} as the hub's `Image()` stores it, or, as published, its address:
    its bytes then come from the tars into which img2dataset downloaded them. As in OBELICS's own pipeline, an image
    that is nowhere is left out, and a page without any that is left too; either way an `Absent` is counted.
    Images that OmniCorpus's `valid_image` refuses are left out without a word. A page that says that it is several
    becomes several documents.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      images: of the tars, "obelics_images/*.tar"; "" where the rows have the bytes.

    Raises:
      DataError: the first file has no such columns, or there are no such tars.
    """

    def __init__(self, split: str, splits: dict[str, str | Sequence[str]], images: str = ""):
        super().__init__(split, splits)
        self._store = UrlStore(images) if images else {}
        if images:
            self.fingerprint = digest(self.fingerprint, self._store.fingerprint)
        for path in self._files:
            try:
                schema = parquet.schema(path)
            except FileError:
                continue  # it is damaged, and counted when it is read
            self._columns(path, schema)
            break

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        for number, row in parquet.rows(path, lambda schema: self._columns(path, schema)):
            where = f"{path}[{number}]"
            try:
                if isinstance(row, RecordError):
                    raise row
                items, absent = _items(row, self._image)
                if absent and not any(isinstance(item, Media) for item in items):
                    raise Absent(where, f"none of its {absent} images is there")
                pages = _split(items)
                for n, page in enumerate(pages):
                    yield Document(tuple(in_order(page, "\n\n")), f"{where}.{n}" if len(pages) > 1 else where)
                if absent:
                    yield Absent(where, f"{absent} of its images are not there")
            except (FileError, Absent) as error:
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
            raise DataError(f"{path}: its images are addresses; give the source images, the tars that img2dataset made")
        return ["images", "texts", *(["valid_image"] if "valid_image" in schema.names else [])]

    def _image(self, image: Any) -> Media | None:
        """The image of a cell; None if its bytes are nowhere."""
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str):
            data, place = (self._store and self._store[image]) or (b"", None)
            if place and len(data) < place.size:
                raise RecordError("", f"of its image {image}, {place.path} has only {len(data)} of {place.size} bytes")
            return Media("image", data, place) if data else None
        if image and not isinstance(image, bytes):
            raise RecordError("", f"one of its images is {str(image)[:40]}; images are bytes or addresses")
        return Media("image", image) if image else None


def _items(row: dict[str, Any], find: Callable[[Any], Media | None]) -> tuple[list[str | Media], int]:
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
            found = find(image)
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


def _split(items: Sequence[str | Media]) -> list[list[str | Media]]:
    """The documents of a page; one without a word or an image is none."""
    pages = [[]]
    for item in items:
        first, *others = item.split(END) if isinstance(item, str) else [item]
        pages[-1].append(first.strip() if others else first)
        pages += [[other.strip()] for other in others]
    full = [page for page in pages if any(isinstance(item, Media) or item.strip() for item in page)]
    return full or [[]]
