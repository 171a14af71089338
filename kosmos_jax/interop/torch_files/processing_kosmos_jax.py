"""Text, images and sound to what KOSMOS-1 reads, in the tokens, pixels and samples of kosmos_jax."""

import contextlib
import itertools
import re

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from .kosmos_torch import normalize


def as_list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def there_are(items: int, kind: str) -> str:
    word = {"audio": "clip"}.get(kind, kind)
    return f"there is 1 {word}" if items == 1 else f"there are {items} {word}s"


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


RATE = 16_000  # samples a second


class KosmosJaxImageProcessor(BaseImageProcessor):
    """Squashes images to the model's size by PIL's bicubic filter; normalises with CLIP's mean and deviation.

    Clips of sound become as many samples as the model hears: `audio_samples`, 0 for a model that hears nothing.
    """

    model_input_names = ["pixel_values", "audio_values"]

    def __init__(self, size=None, num_image_tokens=64, audio_samples=0, num_audio_tokens=0, **kwargs):
        super().__init__(**kwargs)
        self.size = size or {"height": 224, "width": 224}
        self.num_image_tokens = num_image_tokens
        self.audio_samples, self.num_audio_tokens = audio_samples, num_audio_tokens

    def clip(self, sound, place=0):
        """Samples at 16 kHz, or (samples, rate): float from -1 to 1 or int16, [n] or [n, channels] -> int16[samples].

        Raises:
          ValueError: it is something else; says that of clip number `place`. ImportError: soxr is not installed.
        """
        samples, rate = sound if isinstance(sound, tuple) else (sound, RATE)
        samples = np.asarray(samples)
        fits = samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)
        if not fits or not samples.size or samples.ndim not in (1, 2) or not np.isfinite(samples).all():
            found = f"{samples.dtype}{list(samples.shape)}"
            raise ValueError(f"clip {place} is {found}, not float from -1 to 1 or int16, [n] or [n, channels]")
        samples = samples.astype(np.float32) / (32768 if samples.dtype == np.int16 else 1)
        samples = samples.mean(axis=1) if samples.ndim == 2 else samples
        samples = samples[: int((self.audio_samples / RATE + 1) * rate) + 1]
        if rate != RATE:
            import soxr

            samples = soxr.resample(samples, rate, RATE)
        clip = np.zeros(self.audio_samples, np.float32)
        samples = samples[: len(clip)]
        clip[: len(samples)] = samples
        return np.clip(np.round(clip * 32768), -32768, 32767).astype(np.int16)

    def clips(self, sounds):
        """A list of clips, see `clip` -> int16[N, samples]."""
        return torch.from_numpy(np.stack([self.clip(sound, place) for place, sound in enumerate(sounds)]))

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
    """Tokenizer and image processor: processor(text=["<image> A cat", "<image> or <image>?"], images=[a, b, c]).

    Of a model that hears: processor(text="<audio> means", audio=[(samples, rate)]).
    """

    attributes = ["image_processor", "tokenizer"]
    if not hasattr(ProcessorMixin, "get_attributes"):  # transformers 4 asks for these names and 5 warns of them
        image_processor_class, tokenizer_class = "AutoImageProcessor", "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    @property
    def tokens(self):
        """Vectors of an item of each modality that the model has, in the order of its table of vectors."""
        counts = {"image": self.image_processor.num_image_tokens, "audio": self.image_processor.num_audio_tokens}
        return {kind: count for kind, count in counts.items() if count}

    def __call__(
        self,
        images=None,
        text=None,
        return_tensors="pt",
        padding=True,
        padding_side=None,
        return_labels=False,
        audio=None,
    ):
        """Rows of tokens, padded to the longest and never cut, and the media of all rows, each kind in one buffer.

        Args:
          images: PIL images or uint8[H, W, 3], in the order of the `<image>` in the texts: in one list, or in a list
            of lists, one for each text.
          text: a text or a list of them. Each `<image>` stands for an image, each `<audio>` for a clip if the model
            hears, and a newline for `</line>`; whatever else looks like a tag is text. No `</s>` is put at the end, for
            the text is to be continued.
          return_tensors: "pt".
          padding: True or "longest".
          padding_side: "left", as for generation, or "right", which is as good for training; None for the tokenizer's,
            "left" unless you set it.
          return_labels: for training: `</s>` at the end, and `labels`, -100 for `<s>`, media and padding.
          audio: clips, see `KosmosJaxImageProcessor.clip`, in the order of the `<audio>` in the texts; as `images`.

        Returns:
          input_ids, attention_mask, image_slots int64[B, T]; with images pixel_values float32[N, 3, H, W], with sound
          audio_values int16[N, S].

        Raises:
          ValueError: there are more or fewer items than tags for them, in all or, of a list of lists, in a row; or an
            argument is none of the above.
        """
        padding_side = padding_side or self.tokenizer.padding_side
        if padding not in (True, "longest") or padding_side not in ("left", "right"):
            raise ValueError(f"rows are padded to the longest, left or right; not {padding!r}, {padding_side!r}")
        texts = as_list(text)
        clips = [] if audio is None else audio if isinstance(audio, list) else [audio]
        given = {"image": as_list(images), "audio": clips}
        if not texts or not all(isinstance(row_text, str) for row_text in texts):
            raise ValueError(
                f"text is a str or a list of them, and this is {text!r:.80}; name it: text=..., images=..."
            )
        if given["audio"] and "audio" not in self.tokens:
            raise ValueError("there is sound, and this model hears none")
        media = {kind: self._by_row(kind, given[kind], texts) for kind in self.tokens}
        slot, size = {}, 0
        for kind, items in media.items():
            slot[kind] = size
            size += self.tokens[kind] * sum(map(len, items))
        rows = [self._row(row_text, slot, end=return_labels) for row_text in texts]

        length = max(len(ids) for ids, _ in rows)
        fill = lambda row, value: [value] * (length - len(row))  # noqa: E731
        pad = lambda row, v: fill(row, v) + row if padding_side == "left" else row + fill(row, v)  # noqa: E731
        batch = {
            "input_ids": [pad(ids, self.tokenizer.pad_token_id) for ids, _ in rows],
            "attention_mask": [pad([1] * len(ids), 0) for ids, _ in rows],
            "image_slots": [pad(slots, -1) for _, slots in rows],
        }
        if return_labels:
            tags = [tag for kind in self.tokens for tag in (f"<{kind}>", f"</{kind}>")]
            unlearned = self.tokenizer.convert_tokens_to_ids(["<s>", *tags])
            batch["labels"] = [pad([-100 if i in unlearned else i for i in ids], -100) for ids, _ in rows]
        used = {kind: list(itertools.chain(*items)) for kind, items in media.items()}
        if used.get("image"):
            batch["pixel_values"] = self.image_processor(used["image"])["pixel_values"]
        if used.get("audio"):
            batch["audio_values"] = self.image_processor.clips(used["audio"])
        return BatchFeature(batch, tensor_type=return_tensors)

    def _by_row(self, kind, items, texts):
        """The items of a modality that stand in each text."""
        counts = [row_text.count(f"<{kind}>") for row_text in texts]
        several = (list,) if kind == "audio" else (list, tuple)  # a tuple is one clip: samples and their rate
        if not any(isinstance(part, several) for part in items):
            if len(items) > sum(counts):
                raise ValueError(f"{there_are(len(items), kind)}, and the texts name {sum(counts)} by <{kind}>")
            left = iter(items)
            items = [list(itertools.islice(left, count)) for count in counts]
        if len(items) != len(texts):
            raise ValueError(f"there are {len(items)} lists of {kind}s, and {len(texts)} texts")
        items = [list(part) if isinstance(part, several) else as_list(part) for part in items]
        for place, (row_text, count, part) in enumerate(zip(texts, counts, items, strict=True)):
            if count != len(part):
                found = there_are(len(part), kind)
                raise ValueError(f"text {place} has {count} <{kind}>, and {found} for it: {row_text!r}")
        return items

    def _row(self, text, slot, end):
        """Ids and slots of one text; `slot` has the first slot of each modality's next item and is moved on."""
        bos, line, eos = self.tokenizer.convert_tokens_to_ids(["<s>", "</line>", "</s>"])
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

        for i, part in enumerate(re.split(f"<({'|'.join(self.tokens)})>", text)):
            if i % 2:
                count, first = self.tokens[part], slot[part]
                opening, closing = self.tokenizer.convert_tokens_to_ids([f"<{part}>", f"</{part}>"])
                append([opening] * (1 + count) + [closing], [-1, *range(first, first + count), -1])
                slot[part] += count
                continue
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
