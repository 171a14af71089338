"""Text and images to what KOSMOS-1 reads, in the tokens and pixels of kosmos_jax."""

import contextlib
import itertools

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from .kosmos_torch import normalize


def as_list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def there_are(images: int) -> str:
    return "there is 1 image" if images == 1 else f"there are {images} images"


def as_rgb(image):
    """A PIL image as people see it, and as in training: turned as its EXIF orientation says, transparency on white.

    Of 16-bit grey the high byte is taken; 32-bit integers are 16-bit grey too, and floats are grey from 0 to 1.
    """
    with contextlib.suppress(Exception):  # of broken EXIF: the pixels are sound
        image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values, most = np.asarray(image), 1.0 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= most):
            raise ValueError(f"the grey of an image goes from {values.min():g} to {values.max():g}, not 0 to {most:g}")
        grey = np.round(values * 255) if image.mode == "F" else values >> 8
        grey[values == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        shown, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
        image.paste(shown, mask=shown)
    return image.convert("RGB")


class KosmosJaxImageProcessor(BaseImageProcessor):
    """Squashes images to the model's size by PIL's bicubic filter; normalises with CLIP's mean and deviation."""

    model_input_names = ["pixel_values"]

    def __init__(self, size=None, num_image_tokens=64, **kwargs):
        super().__init__(**kwargs)
        self.size = size or {"height": 224, "width": 224}
        self.num_image_tokens = num_image_tokens

    def squash(self, image, place=0):
        """A PIL image, uint8[H, W] or uint8[H, W, 3] -> uint8[height, width, 3].

        Raises:
          ValueError: it is something else; says that of image number `place`.
        """
        if not isinstance(image, Image.Image):
            array = np.asarray(image)
            if array.dtype != np.uint8 or not array.size or not (array.ndim == 2 or array.shape[2:] == (3,)):
                found = f"{array.dtype}{list(array.shape)}" if array.ndim else f"{type(image).__name__} {image!r:.60}"
                raise ValueError(
                    f"image {place} is {found}, not a PIL image or uint8[H, W, 3]; "
                    "transformers.image_utils.load_image opens a path or an address"
                )
            image = Image.fromarray(array)
        shape = (self.size["width"], self.size["height"])
        return np.asarray(as_rgb(image).resize(shape, Image.Resampling.BICUBIC))

    def __call__(self, images, return_tensors="pt"):
        """An image or a list of them -> pixel_values float32[N, 3, H, W]."""
        images = as_list(images)
        squashed = np.zeros((len(images), self.size["height"], self.size["width"], 3), np.uint8)
        for place, image in enumerate(images):
            squashed[place] = self.squash(image, place)
        return BatchFeature({"pixel_values": normalize(torch.from_numpy(squashed))}, tensor_type=return_tensors)

    preprocess = __call__


class KosmosJaxProcessor(ProcessorMixin):
    """Tokenizer and image processor: processor(text=["<image> A cat", "<image> or <image>?"], images=[a, b, c])."""

    attributes = ["image_processor", "tokenizer"]
    if not hasattr(ProcessorMixin, "get_attributes"):  # transformers 4 asks for these names and 5 warns of them
        image_processor_class, tokenizer_class = "AutoImageProcessor", "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self, images=None, text=None, return_tensors="pt", padding=True, padding_side=None, return_labels=False
    ):
        """Rows of tokens, padded to the longest and never cut, and the images of all rows in one buffer.

        Args:
          images: PIL images or uint8[H, W, 3], in the order of the `<image>` in the texts: in one list, or in a list
            of lists, one for each text.
          text: a text or a list of them. Each `<image>` stands for an image and a newline for `</line>`; whatever else
            looks like a tag is text. No `</s>` is put at the end, for the text is to be continued.
          return_tensors: "pt".
          padding: True or "longest".
          padding_side: "left", as for generation, or "right", which is as good for training; None for the tokenizer's,
            "left" unless you set it.
          return_labels: for training: `</s>` at the end, and `labels`, -100 for `<s>`, images and padding.

        Returns:
          input_ids, attention_mask, image_slots int64[B, T]; with images pixel_values float32[N, 3, H, W].

        Raises:
          ValueError: there are more or fewer images than `<image>`, in all or, of a list of lists, in a row; or an
            argument is none of the above.
        """
        padding_side = padding_side or self.tokenizer.padding_side
        if padding not in (True, "longest") or padding_side not in ("left", "right"):
            raise ValueError(f"rows are padded to the longest, left or right; not {padding!r}, {padding_side!r}")
        texts, images = as_list(text), as_list(images)
        if not texts or not all(isinstance(row_text, str) for row_text in texts):
            raise ValueError(
                f"text is a str or a list of them, and this is {text!r:.80}; name it: text=..., images=..."
            )
        counts = [row_text.count("<image>") for row_text in texts]
        if not any(isinstance(part, list | tuple) for part in images):
            if len(images) > sum(counts):
                raise ValueError(f"{there_are(len(images))}, and the texts name {sum(counts)} by <image>")
            left = iter(images)
            images = [list(itertools.islice(left, count)) for count in counts]
        if len(images) != len(texts):
            raise ValueError(f"there are {len(images)} lists of images, and {len(texts)} texts")
        rows, used = [], []
        for place, (row_text, count, part) in enumerate(zip(texts, counts, map(as_list, images), strict=True)):
            if count != len(part):
                raise ValueError(f"text {place} has {count} <image>, and {there_are(len(part))} for it: {row_text!r}")
            rows.append(self._row(row_text, len(used), end=return_labels))
            used += part

        length = max(len(ids) for ids, _ in rows)
        fill = lambda row, value: [value] * (length - len(row))  # noqa: E731
        pad = lambda row, v: fill(row, v) + row if padding_side == "left" else row + fill(row, v)  # noqa: E731
        batch = {
            "input_ids": [pad(ids, self.tokenizer.pad_token_id) for ids, _ in rows],
            "attention_mask": [pad([1] * len(ids), 0) for ids, _ in rows],
            "image_slots": [pad(slots, -1) for _, slots in rows],
        }
        if return_labels:
            given = self.tokenizer.convert_tokens_to_ids(["<s>", "<image>", "</image>"])
            batch["labels"] = [pad([-100 if i in given else i for i in ids], -100) for ids, _ in rows]
        if used:
            batch["pixel_values"] = self.image_processor(used)["pixel_values"]
        return BatchFeature(batch, tensor_type=return_tensors)

    def _row(self, text, image, end):
        """Ids and slots of one text, whose first image is number `image` of the batch."""
        bos, line, opening, closing, eos = self.tokenizer.convert_tokens_to_ids(
            ["<s>", "</line>", "<image>", "</image>", "</s>"]
        )
        ids, slots, line_ended = [bos], [-1], False

        def append(more, more_slots):
            # As in training: </line> stands between what is on two lines; empty lines leave no trace.
            nonlocal line_ended
            if line_ended and len(ids) > 1:
                ids.append(line)
                slots.append(-1)
            line_ended = False
            ids.extend(more)
            slots.extend(more_slots)

        count = self.image_processor.num_image_tokens
        for i, part in enumerate(text.split("<image>")):
            if i:
                first = (image + i - 1) * count
                append([opening] * (1 + count) + [closing], [-1, *range(first, first + count), -1])
            for j, words in enumerate(part.split("\n")):
                line_ended |= j > 0
                encoded = self.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                if encoded:
                    append(encoded, [-1] * len(encoded))
        return (ids + [eos], slots + [-1]) if end else (ids, slots)

    def decode(self, ids, **kwargs):
        """The text of a row of ids, or of each of several: `</line>` is a newline, other tags are nothing."""
        ids = as_list(ids.tolist() if hasattr(ids, "tolist") else ids)
        if ids and np.ndim(ids[0]):
            return [self.decode(row, **kwargs) for row in ids]
        line, lines = self.tokenizer.convert_tokens_to_ids("</line>"), [[]]
        for i in map(int, ids):
            lines.append([]) if i == line else lines[-1].append(i)
        return "\n".join(self.tokenizer.decode(part, **{"skip_special_tokens": True, **kwargs}) for part in lines)

    batch_decode = post_process_image_text_to_text = decode
