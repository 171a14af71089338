"""Image files to uint8 pixels, by PIL: the same pixels in training, in inference and in the released processor.

PIL rather than TensorFlow's image ops: its bicubic filter is what CLIP and the released Kosmos-2 processor use, it is
as fast (see benchmarks/input_pipeline.py), and a corrupt file is an exception here and not the end of a graph.
Normalisation is the model's, on the device: bytes are what travels.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipeline.documents import MediaError
from kosmos_jax.checks import is_range

# Pillow warns of what `decode` refuses or puts right: bombs, transparent palettes, broken EXIF.
warnings.filterwarnings("ignore", module="PIL")
ImageError = partial(MediaError, kind="image")
# See data_pipeline/media/__init__.py.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".jp2", ".ppm")
FORMS = "a PIL image, uint8[H, W] or uint8[H, W, 3]"
AUGMENT = dict(crop_scale=(1.0, 1.0), rotate=0.0)

# Every format is a parser that strangers reach, and some start other programs (EPS runs Ghostscript): only those that
# images of datasets and of the web have.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")
# A quarter of a GiB as RGB: where Pillow begins to warn of decompression bombs.
MAX_PIXELS = 2**30 // 4 // 3
# Of stored JPEGs.
QUALITY = 95
# Longer side to shorter, as Qwen2-VL's processor has it: 20,000 to 1 would be 4 million rows on the way to a crop.
MAX_ASPECT = 200


def decode(encoded: bytes, where: str = "image") -> Image.Image:
    """An encoded image file of one of `FORMATS` as RGB, see `as_rgb`; its first frame if it has several.

    Raises:
      MediaError: names `where`, when PIL cannot read the file to its end, or `as_rgb` refuses it.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise ImageError(where, f"its {len(encoded)} bytes are no image format among {formats}") from error
    except Exception as error:  # PIL raises nearly everything on broken files: OSError, SyntaxError, struct.error, ...
        raise ImageError(where, f"it cannot be read: {error}") from error
    return as_rgb(image, where)


def as_rgb(image: Image.Image, where: str = "image") -> Image.Image:
    """An image as people see it: turned as its EXIF orientation says, transparency on white, 8 bits a colour.

    Of 16-bit grey the high byte is taken, as Pillow does with 16-bit colour. 32-bit integers are 16-bit grey too (so
    Pillow opens a PGM of 16 bits), floats are grey from 0 to 1.

    Raises:
      MediaError: names `where`. It was opened from a file of none of `FORMATS`, there are no pixels, more than
        `MAX_PIXELS` or more than `MAX_ASPECT` to one (all seen before it is decoded), PIL cannot read it to its end, or
        its numbers are beyond those ranges or NaN.
    """
    if image.format not in (None, *FORMATS, "MPO"):  # MPO is JPEG with several frames
        raise ImageError(where, f"its format is {image.format}, none of {', '.join(FORMATS)}")
    (short, long), form = sorted(image.size), "{} x {} pixels".format(*image.size)
    if not 0 < short * long <= MAX_PIXELS:
        raise ImageError(where, f"it has {form}; 1 to {MAX_PIXELS:,} pixels are read")
    if long > MAX_ASPECT * short:
        raise ImageError(where, f"it has {form}; the longer side may be {MAX_ASPECT} times the shorter")
    try:
        image.load()
        with contextlib.suppress(Exception):  # of broken EXIF: the pixels are sound, and nothing says how to turn them
            image = ImageOps.exif_transpose(image)
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            image = _grey(image)
        if image.has_transparency_data:
            shown = image.convert("RGBA")
            image = Image.new("RGB", image.size, "white")
            image.paste(shown, mask=shown)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # see above: a file is decoded only now
        raise ImageError(where, f"it cannot be read: {error}") from error


def _grey(image: Image.Image) -> Image.Image:
    """8-bit grey of 16-bit integers, 32-bit integers and floats."""
    values = np.asarray(image)
    most = 1.0 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= most):  # NaN is neither
        raise ValueError(f"its grey goes from {values.min():g} to {values.max():g}, not from 0 to {most:g}")
    grey = np.round(values * 255) if image.mode == "F" else values >> 8
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey.astype(np.uint8))


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
      draws: float64[4], uniform in [0, 1): area, left, top, turn.
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


def read(value, where: str = "image") -> Image.Image | None:
    """What people hold, a PIL image or uint8[H, W] or uint8[H, W, 3], as RGB; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and (value.ndim == 2 or value.shape[2:] == (3,)):
        value = Image.fromarray(value)
    return as_rgb(value, where) if isinstance(value, Image.Image) else None


def item(image: Image.Image, shape: tuple[int, ...], draws: np.ndarray | None = None, **augment) -> np.ndarray:
    """uint8[size, size, 3]: `squash` at inference, and `augmented` in training.

    Args:
      image: as `decode` gives it.
      shape: (size, size, 3).
      draws: float64[4], uniform in [0, 1), in training.
      augment: options of `augmented`.
    """
    return squash(image, shape[0]) if draws is None else augmented(image, shape[0], draws, **augment)


def stored(data: bytes, image: Image.Image, shape: tuple[int, ...], crop_scale=(1.0, 1.0), rotate=0.0) -> bytes:
    """A JPEG of the resolution that `augmented` wants: six times as fast to read as a photograph of 512 x 384.

    The shorter side is as long as the smallest crop needs to be resized by 1 or less; a file that is no larger is kept.

    Args:
      data: the file.
      image: decoded from it.
      shape: (size, size, 3).
      crop_scale, rotate: see `augmented`.
    """
    side, short = math.ceil(shape[0] / crop_scale[0] ** 0.5), min(image.size)
    if short <= side:
        return data
    width, height = (side if length == short else int(side * length / short) for length in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def problems(augment: Mapping) -> Iterator[str]:
    """What cannot be among the options of `augmented`."""
    scale, rotate = augment.get("crop_scale", (1.0, 1.0)), augment.get("rotate", 0.0)
    if not is_range(scale, 1e-6, 1):
        yield f"crop_scale is {scale}; it is (smallest, largest) share of the area, up to 1"
    if not is_range((0, rotate), 0, 180):
        yield f"rotate is {rotate!r}; it is degrees, from 0 to 180"
