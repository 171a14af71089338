"""Our parameters under the names of our PyTorch module, and the walk between them and a file, either way.

The first step is mechanical: "decoder/layers/fc1/kernel" float[L, D, F] is L tensors "decoder.layers.{i}.fc1.weight"
[F, D]. Of an encoder's two stacks, `trunk` and `top`, PyTorch has one list. The second step, from there to a file's
names, is that of its format (formats/).
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange

from kosmos_jax.errors import UserError
from kosmos_jax.interop.formats import IMPORTS, ExportFormat
from kosmos_jax.interop.formats.base import Source
from kosmos_jax.interop.tensors import FLOATS, Tensor, open_weights
from kosmos_jax.model import abstract_model

STACKED = re.compile(r"(decoder|[^/]+/(?:encoder|connector))/(layers|trunk|top)/(.+)")
PATCH = "image/encoder/patch/kernel"
SHOWN = 12
ROWS = 4096  # of a vocabulary's matrix, in memory at one time


class Place(NamedTuple):
    """Where a PyTorch tensor lies among our parameters.

    Attributes:
      path: of the parameter, e.g. "decoder/layers/fc1/kernel".
      layer: its index in the stack; None for what is not stacked.
      transposed: whether PyTorch has the axes the other way round, as for every linear layer.
      shape: in PyTorch.
      patch: the edge of a patch where CLIP's patch embedding is a convolution [d, 3, p, p] there; 0 for all else.
    """

    path: str
    layer: int | None
    transposed: bool
    shape: tuple[int, ...]
    patch: int = 0

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array of this place (one layer of it) as PyTorch has it, contiguous."""
        array = array.T if self.transposed else array
        if self.patch:
            array = rearrange(array, "d (p q c) -> d c p q", p=self.patch, q=self.patch)
        return np.ascontiguousarray(array)

    def from_torch(self, tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
        """A part of our array of this place as float32; nothing else is read but of a convolution, which is small."""
        if self.patch:
            part = rearrange(tensor.read((slice(None),) * 4), "d c p q -> (p q c) d")[index]
        else:
            part = tensor.read(index[::-1]).T if self.transposed else tensor.read(index)
        return np.ascontiguousarray(part, np.float32)


def torch_names(shapes: Mapping, convolution: bool = False) -> dict[str, Place]:
    """The tensors of our PyTorch module (torch_files/kosmos_torch.py) for parameters of these shapes.

    Args:
      shapes: path -> anything with a `shape`; see kosmos_jax.model.abstract_model.
      convolution: whether to place CLIP's patch embedding as a convolution, as all but our module have it.
    """
    places = {}
    for path, leaf in shapes.items():
        stacked, kernel = STACKED.fullmatch(path), path.endswith("/kernel")
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)[:: -1 if kernel else 1]
        patch = math.isqrt(shape[1] // 3) if convolution and path == PATCH else 0
        shape = (shape[0], 3, patch, patch) if patch else shape
        tower, stack, rest = stacked.groups() if stacked else (None, None, None)
        below = shapes.get(f"{tower}/trunk/norm1/scale") if stack == "top" else None
        first = 0 if below is None else below.shape[0]
        for layer in range(leaf.shape[0]) if stacked else [None]:
            name = f"{tower}/layers/{first + layer}/{rest}" if stacked else path
            name = re.sub(r"/(kernel|scale)$|(?<=^embedding)$", "/weight", name).replace("/", ".")
            places[name] = Place(path, layer, kernel, shape, patch)
    return places


def tensors_of(stored, model, form: ExportFormat) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """The tensors of a file of that format.

    Args:
      stored: has `read(path, layer)`, see StoredModel.
      model: config.model.

    Returns:
      (name -> shape, name -> contiguous array): as `write_tensors` takes them.
    """
    ours = torch_names(abstract_model(model)[1], form.convolution)
    places = {form.rename(name): place for name, place in ours.items()}

    def read(name: str) -> np.ndarray:
        return places[name].to_torch(stored.read(places[name].path, places[name].layer))

    return {name: place.shape for name, place in places.items()}, read


class Reader:
    """Our parameters, read out of foreign files part by part.

    Attributes:
      sections: see `Opened`.
      found: path -> place and tensor of each of its layers, or of all of it; filled by `check`.
    """

    def __init__(self, kind: str, path: str | Path):
        """Opens the files; only their headers are read.

        Raises:
          UserError: unreadable, or not of this kind.
        """
        self.path, self.found = Path(path), {}
        self.opened = IMPORTS[kind](Source(self.path, open_weights(self.path)))
        self.sections = self.opened.sections

    def check(self, shapes: Mapping) -> None:
        """Compares the file with the parameters of a model, all of it before anything is made.

        Args:
          shapes: path -> anything with a `shape`.

        Raises:
          UserError: lists by name what is missing, surplus, of another shape or quantized; or the head is not tied.
        """
        source, tensors = self.opened, self.opened.tensors
        ours = torch_names(shapes, source.convolution)
        wanted = {source.rename(name): place for name, place in ours.items() if name.startswith(source.part)}
        known = {*wanted, source.head, *source.positions}
        surplus = [name for name in tensors if name not in known and not source.ignored.fullmatch(name)]
        missing = [name for name in wanted if name not in tensors]
        other = [
            f"{name} {list(tensors[name].shape)}, the model has {list(place.shape)}"
            for name, place in wanted.items()
            if name in tensors and tensors[name].shape != place.shape
        ]
        given = {name: tensors[name] for name in [*wanted, source.head] if name in tensors}
        coded = [f"{name} {tensor.dtype}" for name, tensor in given.items() if tensor.dtype not in FLOATS]
        found = [("missing", missing), ("surplus", surplus), ("of another shape", other), ("not floats", coded)]
        problems = [f"{len(group)} {what}:\n    " + "\n    ".join(_shown(group)) for what, group in found if group]
        if problems:
            raise UserError(f"{self.path} does not fit, and nothing was imported.\n  " + "\n  ".join(problems))
        for name, table in source.positions.items():
            if name in tensors and np.abs(tensors[name].read((slice(None),) * 2) - table).max() > 1e-3:
                raise UserError(f"{self.path}: {name} is another table of positions than the sinusoids computed here")
        if source.head in tensors:
            self._check_head(tensors[source.head], tensors[source.rename("embedding.weight")])
        for name, place in wanted.items():
            self.found.setdefault(place.path, []).append((place, tensors[name]))

    def _check_head(self, head: Tensor, embedding: Tensor):
        rows = (slice(start, start + ROWS) for start in range(0, embedding.shape[0], ROWS))
        same = head.shape == embedding.shape and all(
            np.array_equal(head.read((part, slice(None))), embedding.read((part, slice(None)))) for part in rows
        )
        if not same:
            raise UserError(
                f"{self.path}: {self.opened.head} is not the embedding, and here the two are one (tied, as in all of "
                f"the family); if the model never used it, delete it from the file"
            )

    def part(self, path: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of one of our parameters as float32, of which nothing else is read.

        Args:
          path: of the parameter, one of those in `found`.
          index: a slice for each axis of the parameter.
        """
        (place, tensor), *_ = layers = self.found[path]
        if place.layer is None:
            return place.from_torch(tensor, index)
        return np.stack([place.from_torch(tensor, index[1:]) for place, tensor in layers[index[0]]])


def _shown(group: list[str]) -> list[str]:
    return group if len(group) <= SHOWN else [*group[:SHOWN], f"... and {len(group) - SHOWN} more"]
