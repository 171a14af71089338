"""Captions of COCO, and of Flickr8k and Flickr30k in the same form."""

import functools
import os.path
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.documents import FileError, Media, RecordError
from data_pipeline.files import decompressed
from data_pipeline.readers.file_reader import RecordReader, beside

# By Karpathy's names; "restval" is what he left of COCO's validation set, and is trained on.
KARPATHY = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}
FORMS = {int: "number", str: "text", list: "list"}

_image_once = functools.lru_cache(1)(lambda folder, name: beside(folder, name, "image"))  # it has five captions


class Coco(RecordReader):
    """Kind `coco`: a document for each caption, those of one image after each other.

    COCO's own `captions_train2017.json` (https://cocodataset.org/#format-data) names a file for each split. Of
    Karpathy's `dataset_coco.json` (https://cs.stanford.edu/people/karpathy/deepimagesent) all splits name the same one;
    it says itself which images are whose.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      images: the folder, or address, that the files' names start from: "coco/train2017", for Karpathy's "coco".
      template: text with the fields `{image:image}` and `{caption}`.
      learned: as of other kinds; all text if empty.
    """

    def __init__(
        self,
        split: str,
        splits: dict[str, str],
        images: str,
        template: str = "{image:image}{caption}",
        learned: Sequence[str] = (),
    ):
        super().__init__(split, splits, template, learned)
        self._split, self._images = split, os.path.expanduser(images).rstrip("/") + "/"

    def media(self, path: str, field: str, kind: str, value: Any) -> Media:
        return Media(kind, *_image_once(self._images, value))

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        import orjson

        with decompressed(path) as file:
            content = orjson.loads(file.read())
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise FileError(path, "has no list of images: it is neither COCO's captions nor Karpathy's")
        images = _official(content) if "annotations" in content else _karpathy(content, KARPATHY[self._split])
        for name, captions in images:
            if isinstance(captions, RecordError):
                yield f"{path}:{name}", captions
                continue
            for caption in captions:
                yield f"{path}:{name}", {"image": name, "caption": caption}


def _official(content: dict) -> Iterator[tuple[str, list | RecordError]]:
    names, captions = {}, {}
    for n, image in enumerate(content["images"]):
        try:
            identity = _key(image, "id", int)
            names[identity], captions[identity] = _key(image, "file_name", str), []
        except RecordError as error:
            yield f"images[{n}]", error
    annotations = content["annotations"]
    for n, annotation in enumerate(annotations if isinstance(annotations, list) else [annotations]):
        try:
            identity = _key(annotation, "image_id", int)
            if identity not in captions:
                raise RecordError("", f"its image_id {identity} is none of the images'")
            captions[identity].append(_key(annotation, "caption", str))
        except RecordError as error:
            yield f"annotations[{n}]", error
    for identity, name in names.items():
        yield name, captions[identity]


def _karpathy(content: dict, splits: Sequence[str]) -> Iterator[tuple[str, list | RecordError]]:
    for n, image in enumerate(content["images"]):
        try:
            if _key(image, "split", str) in splits:
                name = _key(image, "filename", str)
                name = f"{_key(image, 'filepath', str)}/{name}" if "filepath" in image else name
                yield name, [_key(sentence, "raw", str) for sentence in _key(image, "sentences", list)]
        except RecordError as error:
            yield f"images[{n}]", error


def _key(record: Any, key: str, form: type) -> Any:
    if not isinstance(record, dict) or not isinstance(record.get(key), form):
        raise RecordError("", f"has no {key} that is a {FORMS[form]}")
    return record[key]
