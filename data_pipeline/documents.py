"""What every source yields, and what goes wrong with one record of it."""

import dataclasses
from typing import NamedTuple

from kosmos_jax.errors import UserError


class Text(NamedTuple):
    """Text of a document.

    Attributes:
      text: any Unicode.
      supervised: whether the model learns to write it. An instruction is read, its answer is learned.
    """

    text: str
    supervised: bool = True


class Place(NamedTuple):
    """Where the bytes of an item lie: `size` of them, from `offset` on in a file that nobody changes."""

    path: str
    offset: int
    size: int


class Media(NamedTuple):
    """An item of another modality, encoded as in its file.

    Attributes:
      kind: the modality's name, such as "audio".
      data: the file's bytes; `data_pipeline.media` has what decodes them.
      place: where a reader found them, if they lie there as they are: not compressed, not encoded as text.
    """

    kind: str
    data: bytes
    place: Place | None = None


@dataclasses.dataclass(frozen=True)
class Document:
    """Text and media in reading order.

    Attributes:
      parts: in reading order.
      where: the record's name for messages, such as "captions/train[17]".

    Raises:
      RecordError: a part is neither, or a text that UTF-8 cannot hold.
    """

    parts: tuple[Text | Media, ...]
    where: str

    def __post_init__(self):
        for n, part in enumerate(self.parts):
            if isinstance(part, Text) and isinstance(part.text, str):
                try:
                    part.text.encode()
                except UnicodeEncodeError as error:  # half of a surrogate pair: no tokenizer takes it
                    raise RecordError(self.where, f"text {n} is no Unicode: {error}") from error
            elif not (isinstance(part, Media) and isinstance(part.data, bytes)):
                raise RecordError(self.where, f"part {n} is neither Text nor Media but {type(part).__name__}")


class DataError(UserError, ValueError):
    """The data cannot be used and the run has to stop; the message says which record and what to do."""


class RecordError(DataError):
    """One record cannot be read. Callers skip it and count it under `kind`."""

    kind = "record"

    def __init__(self, where: str, why: str):
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class MediaError(RecordError):
    """One item of media cannot be decoded; it is counted under the name of its modality."""

    def __init__(self, where: str, why: str, kind: str):
        super().__init__(where, why)
        self.kind = kind


class FileError(RecordError):
    """What follows in a file cannot be read."""

    kind = "file"


class Absent(RecordError):
    """What the corpus itself says is not there, such as an image that could not be downloaded; nothing is damaged."""

    kind = "absent"


class RowError(RecordError):
    """A document does not fit into the rows of its source."""

    kind = "row"
