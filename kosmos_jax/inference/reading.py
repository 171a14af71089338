"""A prompt into a page, piece by piece, with all that was read or encoded before used again."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kosmos_jax.inference.device import Device
from kosmos_jax.inference.prefill import ALL_BRANCHES, Piece
from kosmos_jax.inference.prompts import EncodedPrompt
from kosmos_jax.modality import Modality, Table


class HashedItem(NamedTuple):
    """An item of media and the hash of all that it is."""

    kind: str
    array: np.ndarray
    key: bytes


def items_of(prompt: EncodedPrompt) -> list[HashedItem]:
    """A prompt's items in the order of their slots.

    Two pictures with the same bytes and other sides have other keys, and no hash is shortened.
    """
    left = {kind: iter(arrays) for kind, arrays in prompt.media.items()}
    found = []
    for kind in prompt.kinds:
        array = np.ascontiguousarray(next(left[kind]))
        found.append(HashedItem(kind, array, _hash(f"{kind} {array.dtype} {array.shape}".encode(), array.tobytes())))
    return found


def _hash(*parts: bytes) -> bytes:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.digest()


class Places:
    """Which key lies in which of a few places; the one that was not asked for longest makes room."""

    def __init__(self, count: int):
        self._count, self._of = count, OrderedDict()

    def find(self, key: bytes) -> int | None:
        """The place of a key, or None."""
        if key in self._of:
            self._of.move_to_end(key)
        return self._of.get(key)

    def take(self, key: bytes) -> int:
        """A place for a new key."""
        full = len(self._of) >= self._count
        self._of[key] = place = self._of.popitem(last=False)[1] if full else len(self._of)
        return place

    def clear(self):
        self._of.clear()


class Reader:
    """Reads prompts into the pages of a device.

    Attributes:
      hits, misses: pieces that were copied from a block, and that were read.
    """

    def __init__(self, device: Device, modalities: Sequence[Modality], places: int, counts: Sequence[int], blocks: int):
        """Args: places: for items of each modality. counts: of items encoded together. blocks: pieces kept."""
        self._device, self._modalities, self._counts = device, {m.name: m for m in modalities}, sorted(counts)
        self._table = Table(modalities, {m.name: places for m in modalities})
        self._places = {m.name: Places(places) for m in modalities}
        self._blocks = Places(blocks) if blocks else None
        self.hits = self.misses = 0

    def tokens(self, kind: str) -> int:
        """Q, of a modality."""
        return self._modalities[kind].tokens

    def blank(self, modality: Modality) -> tuple[np.ndarray, np.ndarray]:
        """Items and places, as `Device.perceive` takes them, for the largest number of items encoded together."""
        count = self._counts[-1]
        return np.zeros((count, *modality.shape), modality.dtype), np.zeros(count, np.int32)

    def forget(self):
        """After the device was emptied."""
        for places in (*self._places.values(), *([self._blocks] if self._blocks else [])):
            places.clear()

    def read(
        self, prompt: EncodedPrompt, items: list[HashedItem], n: int, length: int, later: Iterable[HashedItem]
    ) -> Iterator:
        """Reads a prompt's first tokens, and stops after each piece.

        Args:
          prompt: what to read.
          items: its own.
          n: how many of its tokens.
          length: of the page.
          later: items that are encoded along where there is room.
        """
        # A page's arithmetic may round by its length: what is kept from one is used again in one of the same.
        C, key = self._device.chunk, _hash(b"page", str(length).encode())
        for first in range(0, n, C):
            here = [(start - first, item) for start, item in zip(prompt.starts.tolist(), items, strict=True)]
            here = [(at, item) for at, item in here if at < C and at + self.tokens(item.kind) > 0]
            tokens = prompt.tokens[first : min(first + C, n)]
            key = _hash(key, tokens.tobytes(), *(str(at).encode() + item.key for at, item in here))
            full = len(tokens) == C and self._blocks is not None
            if full and (block := self._blocks.find(key)) is not None:
                self._device.reuse(length, block, first)
                self.hits += 1
                continue
            self._encode([item for _, item in here], [*items, *later])
            slots_C = np.full(C, -1, np.int32)
            for at, item in here:
                slots = self._table.slots(item.kind, self._places[item.kind].find(item.key))
                where = at + np.arange(len(slots))
                seen = (where >= 0) & (where < C)
                slots_C[where[seen]] = slots[seen]
            self._device.read(length, piece(tokens, slots_C, ALL_BRANCHES, first + np.arange(len(tokens))), first)
            self.misses += 1
            if full:
                self._device.keep(length, self._blocks.take(key), first)
            yield

    def _encode(self, wanted: list[HashedItem], later: list[HashedItem]):
        """Makes sure that the vectors of some items are in the table; others come along to fill a batch."""
        for kind, places in self._places.items():
            missing = {item.key: item for item in wanted if item.kind == kind and places.find(item.key) is None}
            if not missing:
                continue
            for item in later:
                if len(missing) < self._counts[-1] and item.kind == kind and places.find(item.key) is None:
                    missing.setdefault(item.key, item)
            found = list(missing.values())
            for at in range(0, len(found), self._counts[-1]):
                batch = found[at : at + self._counts[-1]]
                starts = [int(self._table.slots(kind, places.take(item.key))[0]) for item in batch]
                # What fills the batch up comes first, to the place of a real one, which then overwrites it.
                fill = next(count for count in self._counts if count >= len(batch)) - len(batch)
                arrays = [batch[0].array] * fill + [item.array for item in batch]
                self._device.perceive(kind, np.stack(arrays), np.array([starts[0]] * fill + starts, np.int32))


def piece(tokens, slots_C, branches, positions) -> Piece:
    """A piece of C places, of which the tokens fill the first.

    Args:
      tokens: int[n], n at most C.
      slots_C: int32[C].
      branches: uint32[n], or one for all.
      positions: int[n].
    """
    n, C = len(tokens), len(slots_C)
    padded = lambda values, dtype: np.concatenate([np.asarray(values, dtype), np.zeros(C - n, dtype)])  # noqa: E731
    return Piece(
        tokens_C=padded(tokens, np.int32),
        slots_C=slots_C,
        branches_C=padded(np.broadcast_to(np.uint32(branches), n), np.uint32),
        positions_C=padded(positions, np.int32),
    )
