"""Our parameters under the names of our PyTorch module, and the walk between them and a file, either way.

The first step is mechanical: "decoder/layers/fc1/kernel" float[L, D, F] is L tensors "decoder.layers.{i}.fc1.weight"
[F, D]. Of an encoder's two stacks, `trunk` and `top`, PyTorch has one list. The second step, from there to a file's
names, is that of its format (formats/).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from kosmos_jax.errors import UserError
from kosmos_jax.interop.formats import IMPORTS, ExportFormat
from kosmos_jax.interop.formats.clip import PATCH, convolution_shape, from_convolution, to_convolution
from kosmos_jax.interop.tensors import FLOATS, Tensor, open_weights
from kosmos_jax.model import abstract_model

STACKED = re.compile(r"(decoder/layers|[^/]+/(?:encoder/(?:trunk|top)|connector/layers))/(.+)")
SHOWN = 12
ROWS = 4096  # of a vocabulary's matrix, in memory at one time


class Place(NamedTuple):
    """Where a PyTorch tensor lies among our parameters.

    Attributes:
      path: of the parameter, e.g. "decoder/layers/fc1/kernel".
      layer: its index in the stack; None for what is not stacked.
      transposed: whether PyTorch has the axes the other way round, as for every linear layer.
      shape: in PyTorch.
    """

    path: str
    layer: int | None
    transposed: bool
    shape: tuple[int, ...]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array of this place (one layer of it) as PyTorch has it, contiguous."""
        return np.ascontiguousarray(array.T if self.transposed else array)


def torch_names(shapes: Mapping) -> dict[str, Place]:
    """The tensors of our PyTorch module (torch_files/kosmos_torch.py) for parameters of these shapes.

    Args:
      shapes: path -> anything with a `shape`; see kosmos_jax.model.abstract_model.
    """
    trunks = {path.partition("/")[0]: x.shape[0] for path, x in shapes.items() if path.endswith("/trunk/norm1/scale")}
    places = {}
    for path, leaf in shapes.items():
        stacked = STACKED.fullmatch(path)
        layers = range(leaf.shape[0]) if stacked else [None]
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        kernel = path.endswith("/kernel")
        for layer in layers:
            if stacked:
                stack, rest = stacked.groups()
                tower, _, last = stack.rpartition("/")
                index = layer + trunks.get(tower.partition("/")[0], 0) if last == "top" else layer
                name = f"{tower}/layers/{index}/{rest}"
            else:
                name = path
            name = re.sub(r"/(kernel|scale)$|(?<=^embedding)$", "/weight", name).replace("/", ".")
            places[name] = Place(path, layer, kernel, shape[::-1] if kernel else shape)
    return places


def tensors_of(stored, model, form: ExportFormat) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """The tensors of a file of that format.

    Args:
      stored: has `read(path, layer)`, see StoredModel.
      model: config.model.

    Returns:
      (name -> shape, name -> contiguous array): as `write_tensors` takes them.
    """
    places = torch_names(abstract_model(model)[1])
    convolution = PATCH if form.convolution else ""
    ours = {form.rename(name): name for name in places}  # by the name in the file

    def shape(name: str) -> tuple[int, ...]:
        return convolution_shape(places[name].shape) if name == convolution else places[name].shape

    def read(name: str) -> np.ndarray:
        place = places[ours[name]]
        array = place.to_torch(stored.read(place.path, place.layer))
        return to_convolution(array) if ours[name] == convolution else array

    return {name: shape(origin) for name, origin in ours.items()}, read


class Reader:
    """Our parameters, read out of foreign files part by part."""

    def __init__(self, kind: str, path: str | Path):
        """Opens the files; only their headers are read.

        Raises:
          UserError: unreadable, or not of this kind.
        """
        self.path = Path(path)
        self.source = IMPORTS[kind](self.path, open_weights(self.path))
        self.tensors, self.sections = self.source.tensors, self.source.sections

    def check(self, shapes: Mapping) -> dict[str, Place]:
        """Compares the file with the parameters of a model, all of it before anything is made.

        Args:
          shapes: path -> anything with a `shape`.

        Returns:
          Our PyTorch name -> its place, for all that the file has.

        Raises:
          UserError: lists by name what is missing, surplus, of another shape or quantized; or the head is not tied.
        """
        places = {name: p for name, p in torch_names(shapes).items() if self.source.keeps(name)}
        wanted = {self.source.rename(name): self._foreign_shape(name, place.shape) for name, place in places.items()}
        known = {*wanted, self.source.head, *self.source.positions}
        surplus = [name for name in self.tensors if name not in known and not self.source.ignored.fullmatch(name)]
        missing = [name for name in wanted if name not in self.tensors]
        other = [
            f"{name} {list(self.tensors[name].shape)}, the model has {list(shape)}"
            for name, shape in wanted.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        given = {name: self.tensors[name] for name in [*wanted, self.source.head] if name in self.tensors}
        coded = [f"{name} {tensor.dtype}" for name, tensor in given.items() if tensor.dtype not in FLOATS]
        found = [("missing", missing), ("surplus", surplus), ("of another shape", other), ("not floats", coded)]
        problems = [f"{len(group)} {what}:\n    " + "\n    ".join(_shown(group)) for what, group in found if group]
        if problems:
            raise UserError(f"{self.path} does not fit, and nothing was imported.\n  " + "\n  ".join(problems))
        for name, table in self.source.positions.items():
            if name in self.tensors and np.abs(self.tensors[name].read((slice(None),) * 2) - table).max() > 1e-3:
                raise UserError(f"{self.path}: {name} is another table of positions than the sinusoids computed here")
        if self.source.head in self.tensors:
            self._check_head(self.tensors[self.source.head], self.tensors[self.source.rename("embedding.weight")])
        return places

    def _check_head(self, head: Tensor, embedding: Tensor):
        rows = (slice(start, start + ROWS) for start in range(0, embedding.shape[0], ROWS))
        same = head.shape == embedding.shape and all(
            np.array_equal(head.read((part, slice(None))), embedding.read((part, slice(None)))) for part in rows
        )
        if not same:
            raise UserError(
                f"{self.path}: {self.source.head} is not the embedding, and here the two are one (tied, as in all of "
                f"the family); if the model never used it, delete it from the file"
            )

    def _foreign_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return convolution_shape(shape) if self.source.convolution and name == PATCH else shape

    def _tensor(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = self.tensors[self.source.rename(name)]
        if self.source.convolution and name == PATCH:
            return from_convolution(tensor.read((slice(None),) * 4))[index]
        return tensor.read(index)

    def part(self, path: str, places: Mapping[str, Place], index: tuple[slice, ...]) -> np.ndarray:
        """A part of one of our parameters as float32, of which nothing else is read.

        Args:
          path: of the parameter.
          places: see `check`.
          index: a slice for each axis of the parameter.
        """
        layers = {place.layer: name for name, place in places.items() if place.path == path}

        def read(layer, index):
            name = layers[layer]
            if not places[name].transposed:
                return self._tensor(name, index)
            return self._tensor(name, index[::-1]).T

        if None in layers:
            return np.ascontiguousarray(read(None, index), np.float32)
        chosen = range(len(layers))[index[0]]
        return np.stack([np.asarray(read(layer, index[1:]), np.float32) for layer in chosen])

    def array(self, path: str, leaf, places: Mapping[str, Place]):
        """One of our parameters as float32 jax.Array of `leaf`'s shape and sharding; a process reads its own part.

        Args:
          path: of the parameter.
          leaf: jax.ShapeDtypeStruct with a sharding.
          places: see `check`.
        """
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: self.part(path, places, index))


def _shown(group: list[str]) -> list[str]:
    return group if len(group) <= SHOWN else [*group[:SHOWN], f"... and {len(group) - SHOWN} more"]
