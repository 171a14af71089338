"""Folders of samples: img2dataset's output of files, and what people sort by hand."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from data_pipeline.documents import RecordError
from data_pipeline.readers.file_reader import beside
from data_pipeline.readers.folders import FolderShards
from data_pipeline.readers.samples import SampleReader


class Pairs(FolderShards, SampleReader):
    """Kind `pairs`: files `000000017.jpg`, `000000017.txt` and perhaps `000000017.json` in one folder or many.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`: "coyo/*/*".
      template: text with suffixes of files in braces, see `SampleReader`.
      learned: fields of the template whose text the model learns to write; all text if empty.
    """

    def __init__(
        self, split: str, splits: dict[str, str], template: str = "{image:image}{txt}", learned: Sequence[str] = ()
    ):
        super().__init__(split, splits, template, learned)

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        members = ((name, partial(beside, f"{path}/", name)) for name in self._folders[path])
        for key, record in self.samples(members):
            yield f"{path}/{key}", record
