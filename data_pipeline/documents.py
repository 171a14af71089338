"""What every source yields, and what goes wrong with one record of it."""

import dataclasses

from kosmos_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Document:
    """Text and images in reading order.

    Attributes:
      segments: str is text, bytes is one encoded image file (anything that PIL opens).
      where: the record's name for messages, such as "captions/train[17]".
    """

    segments: tuple[str | bytes, ...]
    where: str


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
