"""The arrays of a checkpoint, piece by piece: a model need not fit in memory to go out, or to come in."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kosmos_jax.checkpoint import ITEMS, assert_intact, read_run, reading, save_weights, step_directory
from kosmos_jax.checksums import checksums
from kosmos_jax.config import from_json
from kosmos_jax.interop.tensors import read_json
from kosmos_jax.model import abstract_model, stacks
from kosmos_jax.paths import in_bucket


class StoredArrays:
    """Path -> array of one Orbax item; nothing is read before `read`.

    Orbax stores a dictionary of arrays as zarr arrays in one OCDBT database; TensorStore reads any part of them.
    """

    def __init__(self, item: Path):
        """Opens an item's folder, e.g. out/checkpoints/1200/params."""
        tree = read_json(item / "_METADATA")
        self._driver = "zarr3" if tree.get("use_zarr3") else "zarr"
        self._item = item
        keys = (entry["key_metadata"] for entry in tree["tree_metadata"].values())
        self.paths = [".".join(part["key"] for part in parts) for parts in keys]
        self._open = {}

    def array(self, path: str):
        """The TensorStore of one array, to read from."""
        import tensorstore

        if path not in self._open:
            spec = {"driver": self._driver, "kvstore": self._place(path), "recheck_cached_data": "open"}
            self._open[path] = tensorstore.open(spec, read=True).result()
        return self._open[path]

    def _place(self, path: str) -> dict[str, str]:
        place = f"{'' if in_bucket(self._item) else 'file://'}{self._item}/"
        return {"driver": "ocdbt", "base": place, "path": f"{path}/"}

    def replaced(self, path: str, shape: tuple[int, ...], chunks: list[int]):
        """The array made anew with another shape, in pieces of `chunks`; a TensorStore to write to.

        Args:
          path: of an array that is there.
          shape: the new one.
          chunks: of the pieces in which it is stored.
        """
        import tensorstore

        spec = self.array(path).spec().to_json() | {"create": True, "delete_existing": True, "open": False}
        spec["kvstore"] = self._place(path)
        spec["metadata"] |= {"shape": list(shape), "chunks": chunks}
        del spec["transform"]
        return tensorstore.open(spec).result()

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        """One array, or one layer of a stacked one."""
        with reading(self._item):
            array = self.array(path)
            return (array if layer is None else array[layer]).read().result()


class StoredModel:
    """The weights of a checkpoint: the moving average where there is one, as inference takes them."""

    def __init__(self, step_directory: Path):
        items = (step_directory / name for name in ("average", "params"))
        self._items = [StoredArrays(item) for item in items if item.name == "params" or item.is_dir()]

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        """float32, the array `path` of kosmos_jax.model.parameters or one layer of it."""
        return next((item for item in self._items if path in item.paths), self._items[-1]).read(path, layer)


def assert_arrays_intact(directory: Path, items=ITEMS) -> tuple[int, int]:
    """Compares checksums, one array at a time, or one layer where arrays are stacked over layers.

    Args:
      directory: of a step.
      items: those of the checkpoint to look at.

    Returns:
      (arrays, bytes) that were read.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    with reading(directory):
        run = read_run(directory)
        written = {item: sums for item, sums in run["checksums"].items() if item in items}
        stacked = tuple(f"{path}/" for path in stacks(from_json(run["config"]).model))
    count, size = sum(map(len, written.values())), 0
    with tqdm(total=count, desc="checksums", unit=" arrays", delay=2, disable=None) as bar:
        for item, sums in written.items():
            stored = StoredArrays(directory / item)
            for name in sums:
                found, words = 0, 0
                for layer in range(stored.array(name).shape[0]) if name.startswith(stacked) else (None,):
                    part = stored.read(name, layer)
                    # One name, so that each shape is compiled once.
                    found += checksums({"part": part}, first=words)["part"]
                    words, size = words + part.size, size + part.nbytes
                assert_intact(directory / item, {name: found % 2**32}, sums)
                bar.update()
    return count, size


# Bytes of an array that are in memory at one time, where it is no stack of layers.
PIECE = 64 * 2**20


def write_weights(workdir: Path, part: Callable[[str, tuple[slice, ...]], np.ndarray], config, tokenizer) -> None:
    """As `checkpoint.save_weights`, with one layer of one array in memory at a time.

    Orbax writes arrays that it has in memory. So it writes a checkpoint of arrays of one number each, with everything
    that belongs to one; then TensorStore puts the true arrays in their place, in the same database.

    Args:
      workdir: a new one.
      part: (path, a slice for each axis) -> float32 array of that part.
      config: the complete config.
      tokenizer: its tokenizer.
    """
    shapes = {path: leaf.shape for path, leaf in abstract_model(config.model)[1].items()}
    tiny = {path: jnp.zeros((1,) * len(shape), jnp.float32) for path, shape in shapes.items()}
    save_weights(workdir, tiny, config, tokenizer)
    item = step_directory(workdir) / "params"
    stored, stacked = StoredArrays(item), tuple(f"{path}/" for path in stacks(config.model))
    sums, chunks = {}, {}
    with tqdm(total=len(shapes), desc="writing", unit=" parameters", disable=None) as bar:
        for path, shape in shapes.items():
            rows = 1 if path.startswith(stacked) else max(1, PIECE * shape[0] // (4 * math.prod(shape)))
            chunks[path] = [min(rows, shape[0]), *shape[1:]]
            array, words, sums[path] = stored.replaced(path, shape, chunks[path]), 0, 0
            for start in range(0, shape[0], rows):
                index = (slice(start, min(start + rows, shape[0])), *[slice(None)] * (len(shape) - 1))
                piece = part(path, index)
                array[index].write(piece).result()
                sums[path] = (sums[path] + checksums({"part": piece}, first=words)["part"]) % 2**32
                words += piece.size
            bar.update()
    _describe(item, chunks, sums)


def _describe(item: Path, chunks: Mapping[str, list[int]], sums: Mapping[str, int]) -> None:
    """Corrects what Orbax and we wrote of the arrays' shapes, pieces and checksums."""
    tree = read_json(item / "_METADATA")
    for entry in tree["tree_metadata"].values():
        path = ".".join(part["key"] for part in entry["key_metadata"])
        entry["value_metadata"]["write_shape"] = chunks[path]
    (item / "_METADATA").write_text(json.dumps(tree))
    for file in (item / "array_metadatas").iterdir():
        arrays = read_json(file)
        for entry in arrays["array_metadatas"]:
            one = entry["array_metadata"]
            one["write_shape"] = one["chunk_shape"] = chunks[one["param_name"]]
        file.write_text(json.dumps(arrays))
    file = item.parent / "run" / "metadata"
    run = read_json(file)
    run["checksums"] = {"params": sums}
    file.write_text(json.dumps(run))
