"""JSON Lines: The Pile, RedPajama, C4 and most other text; captions with the names of files."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.documents import RecordError
from data_pipeline.files import decompressed
from data_pipeline.readers.file_reader import RecordReader


class Jsonl(RecordReader):
    """Kind `jsonl`: an object a line, in `.jsonl` or `.json`, either also with `.gz`, `.zst`, `.xz` or `.bz2`.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      template: text with keys of the object in braces, see `Template`. "{file:image}" is an image whose file the key
        names, relative to the lines' own; "{meta.title}" is a key of an object in the object.
      learned: keys of the template whose text the model learns to write; all text if empty.
    """

    def __init__(self, split: str, splits: dict[str, str], template: str = "{text}", learned: Sequence[str] = ()):
        super().__init__(split, splits, template, learned)

    def records(self, path: str) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        with decompressed(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    yield f"{path}:{number}", json_object(line)


def json_object(line: bytes) -> dict[str, Any] | RecordError:
    """The object that a line holds, or what is wrong with it (without its name)."""
    import orjson

    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:  # no JSON, or no UTF-8
        return RecordError("", f"is no JSON: {error}")
    if not isinstance(record, dict):
        return RecordError("", f"is no JSON object but {line[:40].decode()}")
    return record
