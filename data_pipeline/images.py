"""Image files to uint8 pixels, by PIL: the same pixels in training, in inference and in the released processor.

PIL rather than TensorFlow's image ops: its bicubic filter is what CLIP and the released Kosmos-2 processor use, it is
as fast (see benchmarks/input_pipeline.py), and a corrupt file is an exception here and not the end of a graph.
Normalisation is the model's, on the device: bytes are what travels.
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipeline.documents import ImageError


def decode(encoded: bytes, where: str = "image") -> Image.Image:
    """An encoded image file (JPEG, PNG, WebP, ...) as RGB; its first frame if it has several.

    Raises:
      ImageError: names `where`, when PIL cannot read the file to its end.
    """
    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except UnidentifiedImageError as error:
        raise ImageError(where, f"its {len(encoded)} bytes are no image format that PIL knows") from error
    except Exception as error:  # PIL raises nearly everything on broken files: OSError, SyntaxError, struct.error, ...
        raise ImageError(where, f"PIL cannot read it: {error}") from error


def squash(image: Image.Image, size: int) -> np.ndarray:
    """uint8[size, size, 3]: a bicubic resize that does not keep the aspect, as the released Kosmos-2 processor does."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """uint8[size, size, 3]: shorter side to `size` by bicubic, then the centre, as CLIP and KOSMOS-1 were trained.

    Rounding as in torchvision's Resize and CenterCrop.
    """
    return np.asarray(_center_crop(image, size))


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def augmented(image: Image.Image, size: int, draws: np.ndarray, crop_scale=(1.0, 1.0), rotate=0.0) -> np.ndarray:
    """uint8[size, size, 3]: a random square of the image, resized and turned; a pure function of its arguments.

    The square's area is drawn from `crop_scale` times the largest square's, its place uniformly. With (1, 1) it is
    `center_crop`'s. The turn is uniform in +-`rotate` degrees about the middle, after the resize; corners become black.

    Args:
      draws: float64[4], uniform in [0, 1): area, left, top, turn; see `philox`.
    """
    low, high = crop_scale
    area, left, top, turn = draws.tolist()
    if low == high == 1.0:
        image = _center_crop(image, size)
    else:
        width, height = image.size
        side = min(width, height) * (low + (high - low) * area) ** 0.5
        left, top = left * (width - side), top * (height - side)
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if rotate:
        image = image.rotate(rotate * (2 * turn - 1), Image.Resampling.BICUBIC)
    return np.asarray(image)


def philox(seed: tuple[int, ...]) -> np.random.Generator:
    """A random stream of its own for every tuple of up to six integers (the first two the key, the rest the counter).

    The counter's lowest word is left to the stream itself, so streams never run into each other.
    """
    words = [*seed, *(0 for _ in range(5 - len(seed)))]
    return np.random.Generator(np.random.Philox(key=words[:2], counter=[0, *words[2:5]]))
