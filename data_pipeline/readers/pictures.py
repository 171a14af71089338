"""Bytes that ought to be a picture, as pages and records hold them."""

import base64
import binascii

# First bytes of JPEG, PNG, GIF, WebP, TIFF and BMP; of AVIF and JPEG 2000 what stands after four more.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")
BOXES = (b"ftypavif", b"ftypavis", b"jP  \r\n\x87\n")


def is_picture(data: bytes) -> bool:
    """Whether bytes begin like a picture of pixels.

    Not the page "404" that was saved as a.jpg, and no SVG: a document with many pictures is not lost for one of those.
    """
    return data.startswith(SIGNATURES) or data[4:12] in BOXES


def from_base64(text: str | bytes) -> bytes | None:
    """What is encoded; None if nothing is."""
    try:
        return base64.b64decode(text) or None
    except (binascii.Error, ValueError):  # ValueError: it is not ASCII
        return None
