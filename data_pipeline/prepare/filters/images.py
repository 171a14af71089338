"""Images that teach nothing: icons, rules and spacers."""

import dataclasses
import io
from typing import ClassVar

from data_pipeline.documents import Document, Text
from data_pipeline.media.image import FORMATS, MAX_PIXELS, as_rgb
from data_pipeline.prepare.filters.base import Rejection, image_places
from data_pipeline.template import joined


@dataclasses.dataclass(frozen=True)
class Images:
    """Images that are too small, too long, or of one colour are left out; of a pair nothing is left then.

    One that cannot be opened is left out too; not in a pair, where what decodes it next says what is wrong with it.

    Args:
      smallest: of the shorter side, in pixels.
      aspect: the longer side to the shorter, at most.
      colours: the least range of a channel, of 255; what is of one colour, with the noise of JPEG, has less.
      required: how many images must be left.
    """

    smallest: int = 64
    aspect: float = 5.0
    colours: int = 8
    required: int = 1
    name: ClassVar[str] = "images"

    def apply(self, document: Document) -> Document | Rejection:
        places, pair = image_places(document), len(document.parts) <= 2
        troubles = {n: why for n in places if (why := self._trouble(document.parts[n].data, pair))}
        if len(places) - len(troubles) < self.required:
            return Rejection(", ".join(sorted(set(troubles.values()))) or "no image")
        if not troubles:
            return document
        left = _without(document, set(troubles))
        return left if left.parts else Rejection("nothing but " + ", ".join(sorted(set(troubles.values()))))

    def _trouble(self, data: bytes, pair: bool) -> str:
        from PIL import Image

        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            short, long = sorted(image.size)
            if short < self.smallest:
                return f"under {self.smallest} pixels"
            if long > self.aspect * short:
                return f"longer than {self.aspect:g} to 1"
            if short * long > MAX_PIXELS:
                return "" if pair else f"over {MAX_PIXELS:,} pixels"
            image.draft("RGB", (64, 64))  # a JPEG is decoded at an eighth of its size, if it is large
            low_high = as_rgb(image).getextrema()
        except Exception:  # Pillow raises nearly everything on broken files
            return "" if pair else "cannot be read"
        return "of one colour" if all(high - low < self.colours for low, high in low_high) else ""


def _without(document: Document, places: set[int]) -> Document:
    """A document without some parts; the texts around them do not run into each other."""
    parts, gone = [], False
    for n, part in enumerate(document.parts):
        if n in places:
            gone = True
            continue
        if gone and parts and isinstance(part, Text) and isinstance(parts[-1], Text):
            apart = part.text[:1].isspace() or parts[-1].text[-1:].isspace()
            part = part if apart else part._replace(text="\n" + part.text)
        parts.append(part)
        gone = False
    return Document(tuple(joined(parts)), document.where)
