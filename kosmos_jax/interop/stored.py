"""The arrays of a checkpoint, piece by piece: a model need not fit in memory to be written out in another form."""

from pathlib import Path

import numpy as np

from kosmos_jax.checkpoint import reading
from kosmos_jax.interop.tensors import read_json


class StoredArrays:
    """Path -> array of one Orbax item; nothing is read before `read`.

    Orbax keeps a dictionary of arrays as zarr arrays in one OCDBT database; TensorStore reads any part of them.
    """

    def __init__(self, item: Path):
        """Opens an item's folder, e.g. out/checkpoints/1200/params."""
        tree = read_json(item / "_METADATA")
        self._driver = "zarr3" if tree.get("use_zarr3") else "zarr"
        self._item = item
        keys = (entry["key_metadata"] for entry in tree["tree_metadata"].values())
        self.paths = [".".join(part["key"] for part in parts) for parts in keys]
        self._open = {}

    def _array(self, path: str):
        import tensorstore

        if path not in self._open:
            kvstore = {"driver": "ocdbt", "base": f"file://{self._item}/", "path": f"{path}/"}
            spec = {"driver": self._driver, "kvstore": kvstore, "recheck_cached_data": "open"}
            self._open[path] = tensorstore.open(spec, read=True).result()
        return self._open[path]

    def layers(self, path: str) -> int:
        """How many layers a stacked array has."""
        return self._array(path).shape[0]

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        """One array, or one layer of a stacked one."""
        with reading(self._item):
            array = self._array(path)
            return (array if layer is None else array[layer]).read().result()


class StoredModel:
    """The weights of a checkpoint: the moving average where there is one, as inference takes them."""

    def __init__(self, step_directory: Path):
        self._params = StoredArrays(step_directory / "params")
        averaged = step_directory / "average"
        self._average = StoredArrays(averaged) if averaged.is_dir() else None

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        """float32, the array `path` of kosmos_jax.model.parameters or one layer of it."""
        item = self._average if self._average and path in self._average.paths else self._params
        return item.read(path, layer)
