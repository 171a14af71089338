"""Files of PyTorch tensors: read lazily, written one tensor at a time.

Written is only safetensors, by hand: its libraries want all tensors of a file in memory at once, and the NumPy one
stores a transposed array's bytes in the wrong order without a word. The format (github.com/huggingface/safetensors) is
a length, a JSON header and the bytes.
"""

import argparse
import json
import logging
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tqdm import tqdm

from kosmos_jax.errors import UserError
from kosmos_jax.interop.packages import needed

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FLOATS = {*CODES, *CODES.values(), "float64", "F64"}
INDEX = "model.safetensors.index.json"
# In the order in which transformers looks for them (modeling_utils.py, _get_resolved_checkpoint_files); the first wins.
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
ONE_OF_SEVERAL = re.compile(r".*-\d{5}-of-(?!00001)\d{5}\.\w+")

log = logging.getLogger(__name__)


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
      shape: its shape.
      read: (a slice for each axis) -> array of that part; nothing else is read from the disk.
      dtype: its name in the file; what is not among FLOATS may be unreadable.
    """

    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], np.ndarray]
    dtype: str


def open_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file or of a transformers directory, by name; no values are read yet.

    Args:
      path: a .safetensors file, a PyTorch file (.pt, .pth, .bin), or a folder: of several sets of weights there, the
        one that transformers takes is read, and no file besides.

    Raises:
      UserError: nothing there, no telling which of several files, an incomplete set, a damaged file, or a pickle with
        more in it than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    file = _weights(path)
    if file.suffix == ".json":
        return _open_shards(file)
    if ONE_OF_SEVERAL.fullmatch(file.name):
        raise UserError(f"{file} is one of several; --source is their folder, with the index (*.index.json) in it")
    log.info("reading %s", file)
    return _open_file(file)


def _weights(folder: Path) -> Path:
    """The file of weights in a folder, or the index of several; a file is itself."""
    if folder.is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter (LoRA); save the merged model, merge_and_unload() in peft")
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth"):
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            listed = ", ".join(file.name for file in files)
            raise UserError(f"{folder} has {listed}, none of them {' or '.join(WEIGHTS)}: give one file as --source")
        if files:
            return files[0]
    raise UserError(f"{folder}: no weights (*.safetensors, *.bin, *.pt) in this folder")


def _open_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index lists, each from the file where it is listed."""
    places = read_json(index, "weight_map")
    if not (isinstance(places, Mapping) and all(isinstance(file, str) for file in places.values())):
        raise UserError(f"{index}: weight_map is not a map from tensors to files")
    files = sorted(set(places.values()))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if not files:
        raise UserError(f"{index} lists no files")
    if missing:
        raise UserError(f"{index} lists {', '.join(missing)}, which is not there: download it again")
    log.info("reading %s and %s", index, ", ".join(files))
    opened = {file: _open_file(index.parent / file) for file in files}
    listed, held = set(places.items()), {(name, file) for file, tensors in opened.items() for name in tensors}
    if listed != held:
        name, file = min(listed ^ held)
        problem = "not in it" if (name, file) in listed else "in it and not listed there"
        raise UserError(f"{index} and the files are not of one set: {name} of {file} is {problem}")
    return {name: opened[file][name] for name, file in places.items()}


def read_json(file: Path, *keys: str) -> Any:
    """What a JSON file has under some keys, each inside the one before it.

    Raises:
      UserError: there is no such file, it is no JSON, or it has no such key.
    """
    try:
        value = json.loads(file.read_text())
        for key in keys:
            value = value[key]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} has no {'.'.join(keys)}") from error
    return value


def _open_file(path: Path) -> dict[str, Tensor]:
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = needed("safetensors")

    def read(name, index):
        # Opened anew for each tensor: the pages that were mapped for the one before go.
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_slice(name)[index] if index else file.get_tensor(name)

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
            return {
                name: Tensor(tuple(piece.get_shape()), partial(read, name), piece.get_dtype())
                for name, piece in slices.items()
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}; was the download complete?") from error


def _open_torch(path: Path) -> dict[str, Tensor]:
    """A PyTorch file: a state dict, or one under "model" or "state_dict"; OpenAI's TorchScript archives too."""
    torch, state = needed("torch"), _unpickled(path)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state.get(key), Mapping):
            state = state[key]

    def read(value, index):
        part = value[index].detach()
        if part.dtype == torch.bfloat16:
            return part.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return part.numpy()

    def dtype(value):
        return str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")

    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    return {name: Tensor(tuple(x.shape), partial(read, x), dtype(x)) for name, x in tensors.items()}


def _unpickled(path: Path) -> Mapping[str, Any]:
    torch = needed("torch")

    try:
        # fairseq stores its arguments beside the weights: names and numbers, no code. Only zipped files can be mapped.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no PyTorch file, or holds more than tensors: then reading it could run any code. If you trust "
            f"it, load it elsewhere and save its state_dict as safetensors"
        ) from error
    except RuntimeError as error:
        if "TorchScript" not in str(error) and "constants.pkl" not in str(error):
            raise UserError(f"{path} cannot be read by PyTorch: {str(error).splitlines()[0]}") from error
        state = torch.jit.load(path, map_location="cpu").state_dict()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read by PyTorch: {str(error) or 'it ends too early'}") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no state dict but a {type(state).__name__}")
    return state


def write_tensors(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    title: str = "writing",
) -> list[Path]:
    """Writes model.safetensors, or several shards and their index as transformers names them.

    One tensor is in memory at a time.

    Args:
      directory: where.
      shapes: name -> shape, in the order of the file.
      read: name -> array of that shape.
      dtype: "float32", "float16" or "bfloat16".
      max_shard_bytes: of one file; a single larger tensor gets a file of its own.
      title: of the progress bar.

    Returns:
      The files.

    Raises:
      ValueError: `read` gave another shape.
      UserError: it gave a value that the dtype cannot hold.
    """
    split = needed("huggingface_hub").split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=lambda shape: DTYPES[dtype].itemsize * math.prod(shape),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    with tqdm(total=len(shapes), desc=title, unit=" tensors", disable=None) as bar:
        for filename, names in split.filename_to_tensors.items():
            with (directory / filename).open("wb") as file:
                file.write(_header({name: shapes[name] for name in names}, dtype))
                for name in names:
                    file.write(_bytes(name, read(name), shapes[name], dtype))
                    bar.update()
                file.flush()
                os.fsync(file.fileno())
    if split.is_sharded:
        sizes = split.metadata | dict(total_parameters=sum(map(math.prod, shapes.values())))
        index = dict(metadata=sizes, weight_map=dict(sorted(split.tensor_to_filename.items())))
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [directory / filename for filename in split.filename_to_tensors]


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + DTYPES[dtype].itemsize * math.prod(shape)
        header[name] = dict(dtype=CODES[dtype], shape=list(shape), data_offsets=[begin, end])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: str):
    if array.shape != tuple(shape):
        raise ValueError(f"{name} has shape {array.shape}, {tuple(shape)} was announced")
    if dtype == "float16" and np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        raise UserError(f"{name} has values beyond float16's range; choose bfloat16 or float32")
    # A transposed array is a view with other strides; only a contiguous copy has its bytes in order.
    array = np.ascontiguousarray(array.astype(DTYPES[dtype], copy=False))
    return array.reshape(-1).view(np.uint8).data
