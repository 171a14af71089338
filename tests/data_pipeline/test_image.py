import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from data_pipeline.documents import MediaError
from data_pipeline.media.image import MAX_ASPECT, MAX_PIXELS, as_rgb, augmented, center_crop, decode, item, squash
from data_pipeline.shuffle import philox


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("width, height", [(8, 8), (61, 40), (300, 517)])
def test_squash_gives_the_released_processor_s_pixels_exactly(width, height):
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(
        size={"height": 56, "width": 56}, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    theirs = np.asarray(processor(picture(width, height), return_tensors="np")["pixel_values"][0])
    ours = squash(picture(width, height), 56)
    np.testing.assert_array_equal(ours.transpose(2, 0, 1), theirs)
    assert ours.dtype == np.uint8


def test_center_crop_keeps_the_aspect_and_the_middle():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    np.testing.assert_array_equal(center_crop(Image.fromarray(wide), 10), wide[:, 10:20])
    assert center_crop(picture(31, 77), 16).shape == (16, 16, 3)


def test_random_streams_are_functions_of_their_seed_and_never_meet():
    first = philox((0, 1, 2)).random(1000)
    np.testing.assert_array_equal(first, philox((0, 1, 2)).random(1000))
    for other in [(1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 1, 2, 1)]:
        assert not np.isin(first, philox(other).random(1000)).any()


def test_augmentation_is_a_function_of_its_draws_and_each_of_them_counts():
    image, config = picture(40, 30), {"crop_scale": (0.5, 1.0), "rotate": 20.0}
    first = augmented(image, 16, np.full(4, 0.5), **config)
    np.testing.assert_array_equal(first, augmented(image, 16, np.full(4, 0.5), **config))
    for changed in range(4):
        draws = np.where(np.arange(4) == changed, 0.1, 0.5)
        assert (first != augmented(image, 16, draws, **config)).any()


def test_no_augmentation_is_the_centre_crop():
    draws = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(augmented(picture(40, 30), 16, draws), center_crop(picture(40, 30), 16))


def test_a_crop_keeps_the_share_of_the_area_that_was_asked_for():
    ramp = np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    for n in range(20):
        crop = augmented(Image.fromarray(ramp), 50, philox((n,)).random(4), crop_scale=(0.25, 0.25))
        assert np.ptp(crop[25].astype(int)) == pytest.approx(50, abs=3)


@pytest.mark.parametrize(
    "kind, mode",
    [
        *[("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("GIF", "P"), ("WEBP", "RGB")],
        *[("TIFF", "CMYK"), ("TIFF", "LAB"), ("BMP", "RGB"), ("JPEG2000", "RGBA"), ("PPM", "L"), ("MPO", "RGB")],
        pytest.param("AVIF", "RGBA", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF in Pillow")),
    ],
)
def test_the_formats_of_the_list_become_rgb_whatever_their_mode(kind, mode):
    image = Image.new("LAB", (9, 7)) if mode == "LAB" else picture(9, 7).convert(mode)
    shown = decode(encoded(image, kind))
    assert (shown.mode, shown.size) == ("RGB", (9, 7))


@pytest.mark.parametrize(
    "broken", [b"", b"not an image", encoded(picture(99, 99), "JPEG")[:2000], encoded(picture(99, 99), "PNG")[:-2000]]
)
def test_a_broken_file_is_an_image_error_that_names_it(broken):
    with pytest.raises(MediaError, match=r"pets\[3\] image 1: (it cannot be read|its \d+ bytes are no image)"):
        decode(broken, "pets[3] image 1")


# What has to be done with the stored rows so that people see the picture: Exif 2.32, tag 0x0112.
ORIENTATIONS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_picture_is_turned_as_its_exif_orientation_says(kind, orientation):
    stored, exif = picture(9, 7), Image.Exif()
    exif[0x0112] = orientation
    file = encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(file), ORIENTATIONS[orientation](np.asarray(stored)))


def test_broken_exif_costs_no_picture():
    file = encoded(picture(9, 7), "PNG", exif=b"Exif\0\0no TIFF header")
    np.testing.assert_array_equal(decode(file), picture(9, 7))


def test_transparency_is_white_and_hides_the_colour_below_it():
    colours = np.asarray(picture(9, 7))
    alpha = np.resize(np.array([0, 255, 128], np.uint8), (7, 9, 1))
    expected = np.round(colours * (alpha / 255) + 255 * (1 - alpha / 255))
    rgba = Image.fromarray(np.concatenate([colours, alpha], axis=2))
    for form in (as_rgb(rgba), decode(encoded(rgba, "PNG")), decode(encoded(rgba, "WEBP", lossless=True, exact=True))):
        np.testing.assert_allclose(np.asarray(form, int), expected, atol=1)
    grey = as_rgb(rgba.convert("LA"))
    assert (np.asarray(grey)[alpha[..., 0] == 0] == 255).all()
    np.testing.assert_array_equal(as_rgb(grey), grey)


@pytest.mark.parametrize("mode, hidden", [("P", 5), ("L", 5), ("RGB", (5, 5, 5)), ("I;16", 1285)])
def test_the_colour_that_a_png_declares_transparent_is_white(mode, hidden):
    values = np.arange(0, 60, 5, dtype=np.uint8).reshape(3, 4)
    if mode == "RGB":
        image = Image.fromarray(values).convert("RGB")
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("P")
    shown = np.asarray(decode(encoded(image, "PNG", transparency=hidden)))
    expected = np.where(values == 5, 255, values)
    np.testing.assert_array_equal(shown, np.repeat(expected[..., None], 3, axis=2))


def test_sixteen_bits_of_grey_keep_the_high_byte_and_floats_go_from_zero_to_one():
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(eight[..., None], 3, axis=2)
    sixteen = Image.fromarray(eight.astype(np.uint16) * 257)
    forms = [encoded(sixteen, kind) for kind in ("PNG", "TIFF", "PPM")]
    forms += [encoded(Image.fromarray(eight.astype(np.int32) * 257), "TIFF")]
    forms += [encoded(Image.fromarray((eight / 255).astype(np.float32)), "TIFF")]
    for form in forms:
        np.testing.assert_array_equal(decode(form), expected)


@pytest.mark.parametrize("value", [-0.5, 1.5, 255.0, np.nan, np.inf])
def test_floats_that_are_no_shares_of_white_are_refused(value):
    values = np.full((3, 3), 0.5, np.float32)
    values[1, 1] = value
    with pytest.raises(MediaError, match="its grey goes from .*, not from 0 to 1"):
        decode(encoded(Image.fromarray(values), "TIFF"))
    if value == -0.5:
        with pytest.raises(MediaError, match="its grey goes from -5 to 3, not from 0 to 65535"):
            as_rgb(Image.fromarray(np.array([[3, -5]], np.int32)))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and ends."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, height", [(MAX_PIXELS // 8000, 8001), (12_000, 12_000), (30_000, 30_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(width, height):
    with pytest.raises(MediaError, match="pixels"):
        decode(png_header(width, height))
    with pytest.raises(MediaError, match="it cannot be read"):  # the header of one that is not too large
        decode(png_header(MAX_PIXELS // 8000, 7999))


def test_a_strip_of_pixels_is_refused_and_a_long_picture_is_not():
    with pytest.raises(MediaError, match="1 x 20000 pixels; the longer side may be 200 times the shorter"):
        decode(encoded(Image.new("RGB", (1, 20_000)), "PNG"))
    assert center_crop(decode(encoded(Image.new("RGB", (MAX_ASPECT, 1)), "PNG")), 224).shape == (224, 224, 3)


@pytest.mark.parametrize("size", [(0, 0), (0, 4), (4, 0)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(MediaError, match="it has . x . pixels"):
        as_rgb(Image.new("RGB", size))


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA"])
def test_formats_outside_the_list_are_not_even_tried(kind):
    with pytest.raises(MediaError, match=r"its \d+ bytes are no image format among JPEG, PNG"):
        decode(encoded(picture(9, 7), kind))


def test_an_item_is_squashed_at_inference_and_cropped_in_training():
    image, draws = Image.fromarray(np.arange(40 * 20 * 3, dtype=np.uint8).reshape(20, 40, 3)), philox((1,)).random(4)
    np.testing.assert_array_equal(item(image, (8, 8, 3)), squash(image, 8))
    np.testing.assert_array_equal(item(image, (8, 8, 3), draws, rotate=5.0), augmented(image, 8, draws, rotate=5.0))
