"""From text and images to the arrays that the model reads: rows padded on the left, sizes rounded up to buckets."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.documents import Document
from data_pipeline.images import as_rgb, decode, squash
from kosmos_jax.errors import UserError

IMAGE_TAG = re.compile(r"<image:([^>]*)>")

# An image is a PIL image, uint8[H, W] or uint8[H, W, 3], the bytes of an image file, or its Path; a str is always text.
Part = str | bytes | Path | Image.Image | np.ndarray
Prompt = Part | Sequence[Part]


def parse_prompt(text: str) -> list[str | Image.Image]:
    """Text with `<image:path.png>` in it, as written on the command line, to a prompt.

    Raises:
      UserError: an image file is missing or cannot be read.
    """
    pieces = IMAGE_TAG.split(text)
    return [open_image(Path(piece)) if i % 2 else piece for i, piece in enumerate(pieces) if i % 2 or piece]


def open_image(image: Part) -> Image.Image:
    """Any of the forms of an image as RGB, by the rules of training's images (`images.as_rgb`).

    Raises:
      UserError: it is none of those forms, its file cannot be opened, or `images.as_rgb` refuses it.
    """
    if isinstance(image, Path):
        where = f"the prompt's image {image}"
        try:
            return decode(image.read_bytes(), where)
        except OSError as error:
            raise UserError(f"{where}: {error.strerror.lower()}") from error
    if isinstance(image, bytes):
        return decode(image, "an image in the prompt")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] == (3,)):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        return as_rgb(image, "an image in the prompt")
    form = f"{image.dtype}{list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(
        "a prompt is made of text and images (PIL, uint8[H, W], uint8[H, W, 3], a file's bytes or Path), not of "
        f"{form}; PIL turns most other forms into these"
    )


class Encoded(NamedTuple):
    """One prompt as the model reads it: `<s>` and the body, open at its end.

    Attributes:
      tokens: int32[n].
      slots: int32[n], -1 for text, otherwise m * Q + q for the q-th token of this prompt's m-th image.
      images: uint8[m, H, W, 3].
    """

    tokens: np.ndarray
    slots: np.ndarray
    images: np.ndarray

    def followed_by(self, tokens) -> "Encoded":
        """The same with more text tokens after it."""
        more = np.asarray(tokens, np.int32)
        return self._replace(
            tokens=np.concatenate([self.tokens, more]), slots=np.concatenate([self.slots, np.full_like(more, -1)])
        )


def encode_prompt(prompt: Prompt, tokenizer, config) -> Encoded:
    """A prompt in the tokens of training documents, images squashed to the model's size.

    Args:
      prompt: text, an image, or a list of text and images.
      tokenizer: data_pipeline.tokenizer.Tokenizer.
      config: config.model.

    Raises:
      UserError: see `open_image`; or a text is no Unicode.
    """
    parts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    images = [squash(open_image(part), config.vision.image_size) for part in parts if not isinstance(part, str)]
    # The tokenizer only counts images: where one stands is enough.
    document = Document(tuple(part if isinstance(part, str) else b"" for part in parts), "the prompt")
    body = tokenizer.encode_document(document.segments, config.connector.tokens)
    slots = np.full(len(body.tokens) + 1, -1, np.int32)
    for m, start in enumerate(body.image_starts):
        slots[start + 1 :][: config.connector.tokens] = m * config.connector.tokens + np.arange(config.connector.tokens)
    size = config.vision.image_size
    pixels = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return Encoded(np.concatenate([[tokenizer.bos], body.tokens]).astype(np.int32), slots, pixels)


class Batch(NamedTuple):
    """Prompts side by side. They end together, so all rows write the next token to the same slot of the cache.

    Attributes:
      tokens_BT, segments_BT, positions_BT, slots_BT: int32[B, T] as in training: segment 0 is padding, positions count
        from 0 in each row.
      images_NHWC: uint8[N, H, W, 3], or None when no row has an image.
    """

    tokens_BT: np.ndarray
    segments_BT: np.ndarray
    positions_BT: np.ndarray
    slots_BT: np.ndarray
    images_NHWC: np.ndarray | None


def collate(rows: Sequence[Encoded], pad: int, image_tokens: int) -> Batch:
    """Pads rows on the left, and the counts of rows, tokens and images up to buckets: few shapes are compiled."""
    B, T = power_of_two(len(rows)), bucket(max(len(row.tokens) for row in rows))
    tokens_BT, slots_BT = np.full((B, T), pad, np.int32), np.full((B, T), -1, np.int32)
    segments_BT, positions_BT = np.zeros((2, B, T), np.int32)
    images = 0
    for b, row in enumerate(rows):
        n = len(row.tokens)
        tokens_BT[b, T - n :], segments_BT[b, T - n :], positions_BT[b, T - n :] = row.tokens, 1, np.arange(n)
        slots_BT[b, T - n :] = np.where(row.slots >= 0, row.slots + images * image_tokens, -1)
        images += len(row.images)
    if not images:
        return Batch(tokens_BT, segments_BT, positions_BT, slots_BT, None)
    images_NHWC = np.zeros((power_of_two(images), *rows[0].images.shape[1:]), np.uint8)
    images_NHWC[:images] = np.concatenate([row.images for row in rows])
    return Batch(tokens_BT, segments_BT, positions_BT, slots_BT, images_NHWC)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def bucket(n: int) -> int:
    """The next of 16, 32, 48, ..., 128, 160, 192, 224, 256, 320, ...: from 64 on four to an octave, a fifth is lost."""
    step = max(16, power_of_two(n) // 8)
    return -(-n // step) * step
