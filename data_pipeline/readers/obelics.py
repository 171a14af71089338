"""OBELICS and OmniCorpus: Parquet whose rows have the texts and images of a page, position by position.

https://huggingface.co/datasets/HuggingFaceM4/OBELICS, https://huggingface.co/datasets/OpenGVLab/OmniCorpus-CC
"""

from collections.abc import Iterator
from typing import Any

from data_pipeline.documents import Document, Media, RecordError, Text
from data_pipeline.readers import digest
from data_pipeline.readers.file_reader import FileReader
from data_pipeline.readers.parquet import rows
from data_pipeline.readers.url_store import UrlStore


class Obelics(FileReader):
    """Kind `obelics`: columns `images` and `texts`, lists of one length, of which each position has one of the two.

    An image is bytes, or {"bytes": ..., "path": ...} as the hub's `Image()` stores it, or, as published, its address:
    its bytes then come from the tars into which img2dataset downloaded them. An image that is nowhere is left out, as
    in OBELICS's own pipeline, and a page without any that is left is a record that cannot be read.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      images: of the tars, "obelics_images/*.tar"; "" where the rows have the bytes.
    """

    def __init__(self, split: str, splits: dict[str, str], images: str = ""):
        super().__init__(split, splits)
        self._store = UrlStore(images) if images else {}
        if images:
            self.fingerprint = digest(self.fingerprint, self._store.fingerprint)

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        for i, row in enumerate(rows(path, ["images", "texts"])):
            where = f"{path}[{i}]"
            try:
                yield Document(tuple(self._parts(row["images"], row["texts"])), where)
            except RecordError as error:
                yield RecordError(where, error.why)

    def _parts(self, images: Any, texts: Any) -> list[Text | Media]:
        if not (isinstance(images, list) and isinstance(texts, list) and len(images) == len(texts)):
            raise RecordError("", "its images and texts are no lists of one length")
        parts, missing = [], 0
        for image, text in zip(images, texts, strict=True):
            if image is not None:
                item = self._image(image)
                missing += item is None
                parts += [item] if item else []
            elif text is not None and not isinstance(text, str):
                raise RecordError("", f"one of its texts is {type(text).__name__}")
            elif text and text.strip():
                # Two texts in a row are two paragraphs.
                parts.append(Text("\n" + text if parts and isinstance(parts[-1], Text) else text))
        if missing and not any(isinstance(part, Media) for part in parts):
            raise RecordError("", f"none of its {missing} images is there")
        return parts

    def _image(self, image: Any) -> Media | None:
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str):
            found = self._store[image] if self._store else None
            return Media("image", *found) if found else None
        if not isinstance(image, bytes):
            raise RecordError("", f"one of its images is {type(image).__name__}")
        return Media("image", image) if image else None
