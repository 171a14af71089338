"""MMC4: web pages as lists of sentences, and images with the sentence that each matches best.

Zhu et al. 2023, "Multimodal C4", https://arxiv.org/abs/2304.06939, https://github.com/allenai/mmc4
"""

import functools
import io
import logging
import posixpath
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

from data_pipeline.documents import DataError, Document, FileError, Media, RecordError, Text
from data_pipeline.files import decompressed, file_system, found, opened, stem
from data_pipeline.readers import zips
from data_pipeline.readers.file_reader import FileReader, beside
from data_pipeline.readers.jsonl import json_object
from data_pipeline.readers.pictures import from_base64, is_picture
from data_pipeline.retries import retried

log = logging.getLogger(__name__)


class Mmc4(FileReader):
    """Kind `mmc4`: a document a line, `.jsonl` as published (`.jsonl.zip`), or with `.gz`, `.zst`, `.xz` or `.bz2`.

    An image stands before the sentence that it matches, those of one sentence in the record's order, and sentences are
    joined by spaces: as OpenFlamingo was trained (`open_flamingo/train/data.py`). An image is in the record
    (`image_base64`, as OpenFlamingo's script adds it) or a file under its `image_name`. MMC4 is published without
    images, and not all can be downloaded: those that are not there are left out, and the log counts them by file. A
    document of which none is there is an error.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`: "mmc4/docs_shard_{0..23098}_v2.jsonl.zip".
      images: the folder of the image files, or a pattern of zips of them, "images/*.zip", whose names are all held in
        memory. "{name}" in it is the name of the file of documents without suffixes: "mmc4/{name}_images",
        "mmc4/{name}.zip". Without it, images lie in the documents' own folder.
      min_similarity: images with less `matched_sim` to their sentence are left out (OpenFlamingo: 0.24).

    Raises:
      DataError: there is no such folder or zip.
    """

    def __init__(
        self, split: str, splits: dict[str, str | Sequence[str]], images: str = "", min_similarity: float = 0.0
    ):
        super().__init__(split, splits)
        self._images, self._min_similarity = images, min_similarity
        if images and "{name}" not in images:
            self._place(images)

    @functools.lru_cache(maxsize=2)  # noqa: B019  (a reader lives as long as its process)
    def _place(self, images: str) -> str | dict[str, zips.Member]:
        if images.endswith(".zip"):
            return zips.members(found(images))
        system, path = file_system(images)
        if not system.isdir(path):
            raise DataError(f"images: {images} is no folder, and no pattern that ends in .zip")
        return images.rstrip("/")

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        name = stem(path.removesuffix(".zip"))
        place = self._place(self._images.replace("{name}", name)) if self._images else posixpath.dirname(path)
        shown = missing = 0
        for where, line in _lines(path):
            try:
                record = json_object(line)
                if isinstance(record, RecordError):
                    raise record
                parts, left_out = self._parts(record, place)
                yield Document(tuple(parts), where)
                missing += left_out
                shown += sum(isinstance(part, Media) for part in parts)
            except RecordError as error:
                yield RecordError(where, error.why)
        log.info("%s: %d images; %d more are not there", path, shown, missing)

    def _parts(self, record: dict[str, Any], place: str | dict[str, zips.Member]) -> tuple[list[Text | Media], int]:
        sentences, images = record.get("text_list"), record.get("image_info")
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise RecordError("", "its text_list is no list of texts")
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise RecordError("", "its image_info is no list of objects")
        before, missing = {}, 0
        for n, image in enumerate(images):
            index, similarity = image.get("matched_text_index"), image.get("matched_sim", 1.0)
            if type(index) is not int or not 0 <= index < len(sentences):
                raise RecordError("", f"image {n}: its matched_text_index {index!r} is none of its sentences")
            if not isinstance(similarity, int | float):
                raise RecordError("", f"image {n}: its matched_sim {similarity!r} is no number")
            if similarity < self._min_similarity:
                continue
            media = _media(image, place)
            if media:
                before.setdefault(index, []).append(media)
            missing += media is None
        if missing and not before:
            raise RecordError("", f"none of its {missing} images is there")
        return _interleaved(sentences, before), missing


def _interleaved(sentences: list[str], before: dict[int, list[Media]]) -> list[Text | Media]:
    """Sentences, joined where no image stands between them."""
    parts, start = [], 0
    for index in (*sorted(before), len(sentences)):
        text = " ".join(filter(None, (sentence.strip() for sentence in sentences[start:index])))
        parts += [Text(text)] if text else []
        parts += before.get(index, [])
        start = index
    return parts


def _media(image: dict[str, Any], place: str | dict[str, zips.Member]) -> Media | None:
    name, encoded = image.get("image_name"), image.get("image_base64")
    if isinstance(encoded, str):
        # OpenFlamingo's script writes Python's form of bytes, b'...'.
        found = from_base64(encoded.removeprefix("b'").removesuffix("'")), None
    elif not isinstance(name, str):
        raise RecordError("", f"an image has neither image_name nor image_base64, only {', '.join(image)}")
    elif isinstance(place, dict):
        found = retried(partial(zips.read, place[name]), place[name].address) if name in place else None
    else:
        found = _file(place, name)
    return Media("image", *found) if found and found[0] and is_picture(found[0]) else None


def _file(folder: str, name: str):
    try:
        return beside(f"{folder}/" if folder else "", name)
    except RecordError:
        return None


def _lines(path: str) -> Iterator[tuple[str, bytes]]:
    """Each line that is not empty, and its name."""
    if not path.endswith(".zip"):
        with decompressed(path) as file:
            yield from _numbered(file, path)
        return
    try:
        with opened(path) as file, zips.opened_zip(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as packed:
                    yield from _numbered(io.BufferedReader(packed, 1 << 16), path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # of a member: damaged, or encrypted
        raise FileError(path, f"cannot be read to its end: {error}") from error


def _numbered(lines: BinaryIO, path: str) -> Iterator[tuple[str, bytes]]:
    return ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if not line.isspace())
