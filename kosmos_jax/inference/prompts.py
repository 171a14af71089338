"""From text and media to the arrays that the model reads."""

import contextlib
import re
from collections.abc import Sequence
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.documents import Document, Media, MediaError, Text
from data_pipeline.media import MEDIA, host
from kosmos_jax.errors import UserError
from kosmos_jax.modality import Modality


class Item(NamedTuple):
    """An item of media that is decoded already, as its host side has it."""

    kind: str
    decoded: Any


# Text is a str or Text. An item is Media, the bytes of a file, its Path, or what the host side of a modality reads: a
# PIL image, uint8[H, W] or uint8[H, W, 3] for an image; (samples, rate) for sound.
Part = Any
Prompt = Part | Sequence[Part]


def is_item(part: Part) -> bool:
    """Whether a part, or what may be a list of parts, is one item of media."""
    if isinstance(part, Media | Item):
        return True
    if isinstance(part, tuple) and not isinstance(part, Text):
        return any(isinstance(value, Number) for value in part)  # samples and their rate
    return not isinstance(part, str | list | Text)


def parse_prompt(text: str) -> list[str | Item]:
    """Text with `<image:path.png>` or `<audio:path.wav>` in it, as written on the command line, to a prompt.

    Raises:
      UserError: a file is missing or cannot be read.
    """
    pieces = re.split(rf"<({'|'.join(MEDIA)}):([^>]*)>", text)
    parts = [pieces[0]]
    for kind, path, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        parts += [read_item(Path(path), kind), text]
    return [part for part in parts if part != ""]


def read_item(path: Path, kind: str) -> Item:
    """The item in a file.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    return Item(kind, host(kind).decode(_read(path, kind), f"the prompt's {kind} {path}"))


def _read(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the prompt's {kind} {path}: {error.strerror.lower()}") from error


def open_item(part: Part, found: Sequence[Modality]) -> Item:
    """Any of the forms of an item, decoded by the rules of training.

    A file is of the modality whose files end so, else of the first; bytes are of the first that decodes them.

    Args:
      part: see `Part`; no text.
      found: the model's modalities.

    Raises:
      UserError: it is none of those forms, its file cannot be opened, it cannot be decoded, or the model does not have
        its modality.
    """
    names = [modality.name for modality in found]
    if isinstance(part, Path):
        kind = next((name for name in names if part.suffix.lower() in host(name).SUFFIXES), next(iter(names), "file"))
        part = Media(kind, _read(part, kind))
    if isinstance(part, bytes):
        for name in names:
            with contextlib.suppress(MediaError):
                return Item(name, host(name).decode(part, f"{name} in the prompt"))
        part = Media(next(iter(names), "file"), part)  # for the first one's message
    kind = part.kind if isinstance(part, Media | Item) else None
    if kind is not None and kind not in names:
        raise UserError(f"the prompt has {kind}; this model reads {', '.join(['text', *names])}")
    if isinstance(part, Item):
        return part
    if isinstance(part, Media):
        return Item(kind, host(kind).decode(part.data, f"{kind} in the prompt"))
    for name in names:
        if (decoded := host(name).read(part, f"{name} in the prompt")) is not None:
            return Item(name, decoded)
    form = f"{part.dtype}{list(part.shape)}" if isinstance(part, np.ndarray) else type(part).__name__
    forms = "; ".join(f"{name}: {host(name).FORMS}" for name in names)
    raise UserError(f"a prompt is made of text and media, a file's bytes or its Path ({forms}), not of {form}")


class EncodedPrompt(NamedTuple):
    """One prompt as the model reads it: `<s>` and the body, open at its end.

    Attributes:
      tokens: int32[n].
      kinds: the modality of each item, in order.
      starts: int32[items], where each item's slots begin in `tokens`.
      media: by modality, the items as arrays [*shape], in order.
    """

    tokens: np.ndarray
    kinds: tuple[str, ...]
    starts: np.ndarray
    media: dict[str, list[np.ndarray]]

    def followed_by(self, tokens) -> "EncodedPrompt":
        """The same with more text tokens after it."""
        return self._replace(tokens=np.concatenate([self.tokens, np.asarray(tokens, np.int32)]))


def encode_prompt(prompt: Prompt, tokenizer) -> EncodedPrompt:
    """A prompt in the tokens of training documents, its items transformed as at inference.

    Args:
      prompt: text, an item, or a list of texts and items.
      tokenizer: data_pipeline.tokenizer.Tokenizer, with the model's modalities.

    Raises:
      UserError: see `open_item`; or a text is no Unicode.
    """
    is_list = isinstance(prompt, list | tuple) and not isinstance(prompt, Text) and not is_item(prompt)
    known = {modality.name: modality for modality in tokenizer.modalities}
    parts, media = [], {}
    for part in prompt if is_list else [prompt]:
        if isinstance(part, str | Text):
            parts.append(Text(part) if isinstance(part, str) else part)
            continue
        kind, decoded = open_item(part, tokenizer.modalities)
        parts.append(Media(kind, b""))  # the tokenizer only asks where one stands
        media.setdefault(kind, []).append(host(kind).item(decoded, known[kind].shape))
    body = tokenizer.encode_document(Document(tuple(parts), "the prompt").parts)
    tokens = np.concatenate([[tokenizer.bos], body.tokens]).astype(np.int32)
    return EncodedPrompt(tokens, tuple(item.kind for item in body.media), body.starts + 1, media)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()
