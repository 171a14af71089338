"""Our own interleaved form: documents, instructions and dialogues that someone writes for training, in JSON Lines."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.documents import Document, Media, RecordError, Text
from data_pipeline.files import decompressed
from data_pipeline.media import MEDIA
from data_pipeline.readers.file_reader import FileReader, beside
from data_pipeline.readers.jsonl import json_object
from data_pipeline.readers.pictures import from_base64
from data_pipeline.template import joined, unknown

BASE64 = "_base64"
FORMS = ("text", *MEDIA, *(name + BASE64 for name in MEDIA))


class Parts(FileReader):
    """Kind `parts`: a document a line, `.jsonl`, also with `.gz`, `.zst`, `.xz` or `.bz2`.

        {"parts": ["Look: ", {"image": "a.jpg"}, {"text": " What is it? ", "learned": false}, "A cat."]}
        {"parts": [{"audio": "b.wav"}, {"image_base64": "iVBORw0KGgo..."}]}

    A part is one of

        "text"                              text that the model learns to write
        {"text": "...", "learned": false}   text that it only reads
        {"image": "a.jpg"}                  a file, relative to the lines' own, or below; so for each modality
        {"image_base64": "..."}             the bytes of a file

    Other keys of the line are passed over.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
    """

    def __init__(self, split: str, splits: dict[str, str | Sequence[str]]):
        super().__init__(split, splits)

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        with decompressed(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                where = f"{path}:{number}"
                try:
                    yield Document(tuple(_parts(path, json_object(line))), where)
                except RecordError as error:
                    yield RecordError(where, error.why)


def _parts(path: str, record: dict[str, Any] | RecordError) -> list[Text | Media]:
    if isinstance(record, RecordError):
        raise record
    values = record.get("parts")
    if not isinstance(values, list) or not values:
        raise RecordError("", f"has no list `parts`, only {', '.join(record) or 'nothing'}")
    parts = []
    for n, value in enumerate(values):
        try:
            parts.append(_part(path, {"text": value} if isinstance(value, str) else value))
        except RecordError as error:
            raise RecordError("", f"part {n}: {error.why}") from error
    if not any(isinstance(part, Media) or part.text.strip() for part in parts):
        raise RecordError("", "is empty")
    texts = [part for part in parts if isinstance(part, Text)]
    if texts and not any(text.supervised and text.text.strip() for text in texts):
        raise RecordError("", "has no text that is learned")
    return joined(parts)


def _part(path: str, value: Any) -> Text | Media:
    if not isinstance(value, dict):
        raise RecordError("", "is neither a text nor an object")
    names = [name for name in value if name != "learned" or "text" not in value]
    if len(names) != 1:
        raise RecordError("", f"has {', '.join(names) or 'no key'}, not one of {', '.join(FORMS)}")
    (name,) = names
    if name not in FORMS:
        raise RecordError("", unknown(name, FORMS))
    content, learned = value[name], value.get("learned", True)
    if not isinstance(content, str):
        raise RecordError("", f"its {name} is {type(content).__name__}, no string")
    if name == "text":
        if not isinstance(learned, bool):
            raise RecordError("", f"its learned is {learned!r}, neither true nor false")
        return Text(content, learned)
    if not name.endswith(BASE64):
        data, place = beside(path, content, name)
    else:
        data, place = from_base64(content), None
    if not data:
        raise RecordError("", f"its {name} is empty" + " or no base64" * (place is None))
    return Media(name.removesuffix(BASE64), data, place)
