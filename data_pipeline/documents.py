"""What every source yields, and what goes wrong with one record of it."""

import dataclasses

from kosmos_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Document:
    """Text and images in reading order.

    Attributes:
      segments: str is text, bytes is one encoded image file (see `images.FORMATS`).
      where: the record's name for messages, such as "captions/train[17]".

    Raises:
      RecordError: a segment is neither, or a text that UTF-8 cannot hold.
    """

    segments: tuple[str | bytes, ...]
    where: str

    def __post_init__(self):
        for n, segment in enumerate(self.segments):
            if isinstance(segment, str):
                try:
                    segment.encode()
                except UnicodeEncodeError as error:  # half of a surrogate pair: no tokenizer takes it
                    raise RecordError(self.where, f"text {n} is no Unicode: {error}") from error
            elif not isinstance(segment, bytes):
                raise RecordError(self.where, f"part {n} is neither text nor bytes but {type(segment).__name__}")


class DataError(UserError, ValueError):
    """The data cannot be used and the run has to stop; the message says which record and what to do."""


class RecordError(DataError):
    """One record cannot be read. Callers skip it and count it under `kind`."""

    kind = "record"

    def __init__(self, where: str, why: str):
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class ImageError(RecordError):
    """One image cannot be decoded."""

    kind = "image"


class RowError(RecordError):
    """A document does not fit into the rows of its source."""

    kind = "row"
