"""What data and model must agree on: the special ids, the modalities, and where an item's vectors lie in a batch."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

# fairseq's layout: these four, then SentencePiece's pieces (its ids 0, 1, 2 are unk, bos and eos), then the tags.
BOS, PAD, EOS, UNK = range(4)
FIRST_PIECE = 4
TAGS = ("<mask>", "</doc>", "<image>", "</image>", "</chunk>", "</line>")
KOSMOS2_TAGS = (
    *("<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>", "<grounding>"),
    *(f"<patch_index_{i:04d}>" for i in range(1024)),
)
# In the order in which their tags got token ids. A published id never moves: a new name comes last. A modality that
# is not here comes after those that are, by name (a ConfigDict sorts its keys, so a config has no order of its own).
NAMES = ("image", "audio")


@dataclasses.dataclass(frozen=True)
class Modality:
    """One kind of perception beside text: a section of `config.model.perception`.

    Attributes:
      name: "image": its tags are <image> and </image>, its parameters image/encoder/... and image/connector/...
      tokens: Q, an item's vectors in the decoder's stream.
      shape: of an item in a batch, such as (224, 224, 3).
      dtype: of an item in a batch, such as "uint8".
    """

    name: str
    tokens: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def tags(self) -> tuple[str, str]:
        return f"<{self.name}>", f"</{self.name}>"


def modalities(model) -> tuple[Modality, ...]:
    """The modalities of a `config.model`, in the order of `NAMES`."""
    sections = model.perception
    names = sorted(sections, key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name))
    return tuple(
        Modality(name, sections[name].tokens, tuple(sections[name].shape), sections[name].dtype) for name in names
    )


def all_tags(found: Iterable[Modality], kosmos2: bool) -> tuple[str, ...]:
    """The tags of a vocabulary in the order of their ids; those of KOSMOS-1 are always there."""
    own = tuple(tag for modality in found for tag in modality.tags)
    return TAGS + (KOSMOS2_TAGS if kosmos2 else ()) + tuple(tag for tag in own if tag not in TAGS)


class Table:
    """Where each item's vectors lie in the one flat table of a batch: all images, then all clips of sound, and so on.

    Two images with Q = 2, then one clip with Q = 3:

        vectors  image 0  image 0  image 1  image 1  audio 0  audio 0  audio 0
        slot        0        1        2        3        4        5        6

    Attributes:
      first: the first slot of each modality, by name.
      tokens: Q of each modality, by name.
    """

    def __init__(self, found: Iterable[Modality], items: Mapping[str, int]):
        """Args: found: the modalities in order. items: how many places for items the batch has, by name."""
        self.first, self.tokens, size = {}, {}, 0
        for modality in found:
            self.first[modality.name], self.tokens[modality.name] = size, modality.tokens
            size += modality.tokens * items.get(modality.name, 0)

    def slots(self, name: str, n: int) -> np.ndarray:
        """int32[Q]: the slots of item `n` of a modality: first + n * Q + q."""
        tokens = self.tokens[name]
        return (self.first[name] + n * tokens + np.arange(tokens)).astype(np.int32)
