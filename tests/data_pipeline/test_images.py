import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.documents import ImageError
from data_pipeline.images import augmented, center_crop, decode, philox, squash


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
    "kind, mode", [("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_whatever_pil_opens_becomes_rgb(kind, mode):
    assert decode(encoded(picture(9, 7).convert(mode), kind)).mode == "RGB"


@pytest.mark.parametrize(
    "broken", [b"", b"not an image", encoded(picture(99, 99), "JPEG")[:2000], encoded(picture(99, 99), "PNG")[:-2000]]
)
def test_a_broken_file_is_an_image_error_that_names_it(broken):
    with pytest.raises(ImageError, match=r"pets\[3\] image 1: (it cannot be read|its \d+ bytes are no image)"):
        decode(broken, "pets[3] image 1")
