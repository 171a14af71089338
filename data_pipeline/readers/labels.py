"""Classified files, a folder for each class, as captions: ImageNet, Food-101, Speech Commands."""

import os.path
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline.documents import DataError, Media, RecordError
from data_pipeline.files import decompressed
from data_pipeline.media import MEDIA, host
from data_pipeline.readers.file_reader import RecordReader, beside
from data_pipeline.readers.folders import FolderShards
from data_pipeline.template import unknown


class Labels(FolderShards, RecordReader):
    """Kind `labels`: every file of a folder has the folder's name as its label, or what `names` calls it.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`: "imagenet/train/*/*.JPEG".
      template: text with the fields `{image:image}` (or another modality), `{label}`, and `{folder}` as it is written.
      learned: as of other kinds; all text if empty.
      names: labels by folder, or a file of them: `.json`, or lines "n01440764 tench, Tinca tinca", as of ImageNet's
        LOC_synset_mapping.txt. Without, "golden_retriever" is "golden retriever".

    Raises:
      DataError: `names` does not have each of the folders.
    """

    def __init__(
        self,
        split: str,
        splits: dict[str, str],
        template: str = "{image:image}a photo of a {label}.",
        learned: Sequence[str] = (),
        names: str | Mapping[str, str] | None = None,
    ):
        super().__init__(split, splits, template, learned)
        classes = {folder: os.path.basename(folder) for folder in self.shards()}
        if names is None:
            self._labels = {folder: name.replace("_", " ") for folder, name in classes.items()}
        else:
            names, said = (_names(names), names) if isinstance(names, str) else (dict(names), "names")
            if missing := [name for name in classes.values() if name not in names]:
                raise DataError(f"{said}: class {unknown(missing[0], list(names)[:20])}")
            self._labels = {folder: names[name] for folder, name in classes.items()}

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        label = {"label": self._labels[path], "folder": os.path.basename(path)}
        for name in self._folders[path]:
            if not name.startswith("."):
                yield f"{path}/{name}", dict.fromkeys(MEDIA, name) | label

    def media(self, path: str, field: str, kind: str, value: Any) -> Media:
        if not value.lower().endswith(host(kind).SUFFIXES):
            raise RecordError("", f"its suffix is none of {kind}: {', '.join(host(kind).SUFFIXES)}")
        return Media(kind, *beside(f"{path}/", value))


def _names(address: str) -> dict[str, str]:
    import orjson

    try:
        with decompressed(os.path.expanduser(address)) as file:
            data = file.read()
        if ".json" not in address:
            lines = [line.split("\t" if "\t" in line else None, 1) for line in data.decode().splitlines() if line]
            return {folder: label.strip() for folder, label in lines}
        found = orjson.loads(data)
    except (OSError, ValueError) as error:
        raise DataError(f"{address} cannot be read: {error}; a line is a folder and its label") from error
    if not isinstance(found, dict) or not all(isinstance(label, str) for label in found.values()):
        raise DataError(f"{address}: is no JSON object of labels by folder")
    return found
