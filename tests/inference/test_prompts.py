import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.documents import Media, Text
from data_pipeline.media.image import decode
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.wav import wav
from kosmos_jax.errors import UserError
from kosmos_jax.inference.generator import _is_one_prompt
from kosmos_jax.inference.prompts import Item, encode_prompt, is_item, open_item, parse_prompt
from kosmos_jax.interop.rows import collate
from kosmos_jax.modality import Modality
from tests.data_pipeline.demo_data import image
from tests.inference.conftest import TEXTS

IMAGE = [image(tokens=4, size=16)]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


def open_image(part):
    kind, decoded = open_item(part, IMAGE)
    assert kind == "image"
    return decoded


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    Image.fromarray(PIXELS).save(path)
    return path


def test_text_and_image_tags_become_parts_in_order(picture):
    first, image, second = parse_prompt(f"look: <image:{picture}> and say")
    assert (first, second) == ("look: ", " and say")
    assert image.kind == "image"
    np.testing.assert_array_equal(np.asarray(image.decoded), PIXELS)
    assert [type(part) for part in parse_prompt(f"<image:{picture}><image:{picture}>")] == [Item] * 2
    assert parse_prompt("a < b > c <image> d") == ["a < b > c <image> d"]


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.png: no such file"):
        parse_prompt(f"see <image:{tmp_path}/nowhere.png>")


def test_a_broken_image_is_named(picture):
    picture.write_bytes(picture.read_bytes()[:50])
    with pytest.raises(UserError, match="a picture.png"):
        parse_prompt(f"see <image:{picture}>")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        parse_prompt(f"see <image:{tmp_path}>")


@pytest.mark.parametrize(
    "shape, dtype",
    [
        *[((2, 2), "float64"), ((4, 4, 3), "float32"), ((4, 4), "bool"), ((4, 4), "uint16"), ((4, 4, 3), "int64")],
        *[((3, 4, 4), "uint8"), ((4, 4, 4), "uint8"), ((4, 4, 1), "uint8"), ((4,), "uint8"), ((1, 4, 4, 3), "uint8")],
    ],
)
def test_an_array_that_is_no_picture_is_named_by_dtype_and_shape(shape, dtype):
    with pytest.raises(UserError, match=re.escape(f"not of {dtype}{list(shape)}")):
        open_image(np.zeros(shape, dtype))


@pytest.mark.parametrize("other", [{}, None, 5])
def test_what_is_no_image_is_named(other):
    with pytest.raises(UserError, match=f"not of {type(other).__name__}"):
        open_image(other)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (0, 0), (1, 201)])
def test_an_array_without_pixels_or_of_one_line_is_refused(shape):
    with pytest.raises(UserError, match=f"image in the prompt: it has {shape[1]} x {shape[0]} pixels"):
        open_image(np.zeros(shape, np.uint8))


def test_prompts_show_images_as_training_does():
    turned, exif, file = Image.fromarray(PIXELS), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    turned.save(file, "PNG", exif=exif)
    for form in (file.getvalue(), Image.open(file)):
        np.testing.assert_array_equal(open_image(form), decode(file.getvalue()))
        assert open_image(form).size == turned.size[::-1]
    assert open_image(Image.new("RGBA", (2, 2))).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UserError, match="not from 0 to 1"):
        open_image(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def test_opened_images_of_formats_that_start_other_programs_are_refused_before_they_are_loaded():
    eps, jpeg = io.BytesIO(), io.BytesIO()
    Image.fromarray(PIXELS).save(eps, "EPS")
    with pytest.raises(UserError, match="image in the prompt: its format is EPS, none of JPEG, PNG"):
        open_image(Image.open(eps))
    Image.fromarray(PIXELS).save(jpeg, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS)])
    assert open_image(Image.open(jpeg)).size == open_image(jpeg.getvalue()).size


def test_all_forms_of_an_image_read_alike(picture, tokenizer):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    forms = [picture, PIXELS, Image.fromarray(PIXELS), file.getvalue(), Media("image", file.getvalue())]
    read = [encode_prompt([form, "seven"], tokenizer) for form in forms]
    for other in read[1:]:
        np.testing.assert_array_equal(other.media["image"], read[0].media["image"])
        np.testing.assert_array_equal(other.tokens, read[0].tokens)


def test_a_prompt_reads_as_the_start_of_a_training_document(tokenizer):
    prompt = encode_prompt([PIXELS, "plus", PIXELS, "equals"], tokenizer)
    slot, (plus, equals) = tokenizer.tag_ids["<image>"], (tokenizer.encode(word) for word in ("plus", "equals"))
    image = [slot, slot, slot, slot, slot, tokenizer.tag_ids["</image>"]]  # four slots
    assert prompt.tokens.tolist() == [tokenizer.bos, *image, *plus, *image, *equals]
    at = [-1, 0, 1, 2, 3, -1]
    after = [-1, 4, 5, 6, 7, -1]
    slots = collate([prompt], tokenizer.pad, tokenizer.modalities).slots_BT[0, -len(prompt.tokens) :]
    assert slots.tolist() == [-1, *at, *[-1] * len(plus), *after, *[-1] * len(equals)]


def test_rows_are_padded_on_the_left_and_own_their_images(tokenizer):
    rows = [encode_prompt(p, tokenizer) for p in (["seven", PIXELS], "", [PIXELS, PIXELS])]
    batch = collate(rows, tokenizer.pad, tokenizer.modalities)
    B, T = batch.tokens_BT.shape
    assert (B, T) == (3, max(len(row.tokens) for row in rows)) and batch.media["image"].shape == (3, 16, 16, 3)
    for b, row in enumerate(rows):
        n = len(row.tokens)
        assert batch.segments_BT[b].tolist() == [0] * (T - n) + [1] * n
        assert batch.positions_BT[b, T - n :].tolist() == list(range(n))
        assert batch.tokens_BT[b, T - n :].tolist() == row.tokens.tolist()
    assert [sorted(set(row[row >= 0] // 4)) for row in batch.slots_BT] == [[0], [], [1, 2]]


def test_sound_and_images_in_one_prompt_have_slots_one_modality_after_the_other():
    both = [image(tokens=2, size=16), Modality("audio", 3, (320,), "int16")]
    tokenizer = Tokenizer.train(TEXTS, 44, modalities=both)
    sound, clip = (np.zeros(400, np.float32), 16_000), Media("audio", wav(np.ones(400, np.int16), 16_000))
    rows = [encode_prompt(prompt, tokenizer) for prompt in ([sound, "plus", PIXELS], sound, [clip, sound])]
    batch = collate(rows, tokenizer.pad, both)
    assert batch.media["image"].shape == (1, 16, 16, 3) and batch.media["audio"].shape == (4, 320)
    slots = [row[row >= 0].tolist() for row in batch.slots_BT]
    assert slots == [[2, 3, 4, 0, 1], [5, 6, 7], [8, 9, 10, 11, 12, 13]]
    assert (batch.media["audio"][2] != 0).any() and not batch.media["audio"][[0, 1, 3]].any()


def test_samples_and_their_rate_are_one_item_and_a_list_of_texts_is_none():
    sound = (np.zeros(400, np.float32), 16_000)
    assert all(map(is_item, (sound, PIXELS, b"", Path("x.png"), Media("audio", b""))))
    assert not any(map(is_item, ("text", Text("text"), ["a", "b"], [sound, "a"], ("a", PIXELS))))
    assert _is_one_prompt(sound) and _is_one_prompt([sound, "is"]) and not _is_one_prompt([[sound, "is"], "b"])


def test_media_that_the_model_does_not_have_are_told():
    with pytest.raises(UserError, match="the prompt has audio; this model reads text, image"):
        open_item(Media("audio", b""), IMAGE)
