"""Files of tensors: other libraries read what we write, bit for bit, and we read what others write."""

import argparse
import io
import json

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from kosmos_jax.errors import UserError
from kosmos_jax.interop.tensors import DTYPES, INDEX, open_weights, write_tensors

shapes = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    min_size=1,
    max_size=6,
)


@given(shapes, st.sampled_from(list(DTYPES)), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_safetensors_reads_what_we_write(tmp_path_factory, shapes, dtype, shard, seed):
    folder, draw = tmp_path_factory.mktemp("t"), np.random.default_rng(seed)
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    # Every other one comes with strides that are not those of its shape, as a transposed kernel does.
    strided = {name: array.T.copy().T if i % 2 else array for i, (name, array) in enumerate(arrays.items())}
    files = write_tensors(folder, shapes, strided.__getitem__, dtype, max_shard_bytes=shard)
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = torch.from_numpy(array).to(getattr(torch, dtype))
        assert read[name].dtype == expected.dtype and torch.equal(read[name], expected)
    assert (folder / INDEX).exists() == (len(files) > 1)
    ours = open_weights(folder)
    for name, array in arrays.items():
        if not array.size:
            continue  # safetensors cannot slice what is empty, and no parameter is
        whole = ours[name].read((slice(None),) * array.ndim)
        assert np.array_equal(whole.astype(np.float32), array.astype(DTYPES[dtype]).astype(np.float32))


def test_a_strided_array_is_stored_in_its_shapes_order(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert not kernel.T.flags.c_contiguous
    write_tensors(tmp_path, {"w": (3, 2)}, lambda name: kernel.T)
    assert load_file(tmp_path / "model.safetensors")["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_values_beyond_float16_are_refused(tmp_path):
    with pytest.raises(UserError, match="w has values.*bfloat16"):
        write_tensors(tmp_path, {"w": (1,)}, lambda name: np.array([1e6], np.float32), "float16")


@pytest.mark.parametrize("wrapped", ["", "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_are_read_in_parts(tmp_path, wrapped, zipped):
    state = {
        "w": torch.arange(12.0).reshape(3, 4),
        "half": torch.ones(2, 2, dtype=torch.bfloat16),
        "n": torch.tensor(3),
    }
    file = tmp_path / "x.pt"
    content = {wrapped: state, "args": argparse.Namespace(lr=1)} if wrapped else state
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    tensors = open_weights(file)
    assert tensors["w"].read((slice(1, 2), slice(0, 2))).tolist() == [[4, 5]]
    assert tensors["half"].read((slice(0, 1), slice(None))).dtype == ml_dtypes.bfloat16
    assert tensors["n"].shape == ()


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"w": torch.ones(1), "x": Harmful()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="more than tensors"):
        open_weights(tmp_path / "x.pt")
    assert "code ran" not in capsys.readouterr().out


def saved(save, content) -> bytes:
    file = io.BytesIO()
    save(content, file)
    return file.getvalue()


SAFE, TORCH = save({"w": torch.ones(100)}), saved(torch.save, {"w": torch.ones(100)})


@pytest.mark.parametrize("files, message", [
    ({"model.safetensors": SAFE[:-8]}, "was the download complete"),
    ({"model.safetensors": b""}, "was the download complete"),
    ({"README.md": b""}, r"no weights \(\*.safetensors"),
    ({INDEX: b'{"weight_map": {"w": "model-1.safetensors"}}'}, "model-1.safetensors, which is not there"),
    ({INDEX: b"{"}, "no JSON"),
    ({INDEX: b"[]"}, "has no weight_map"),
    ({INDEX: b'{"weight_map": ["w"]}'}, "weight_map is not a map"),
    ({INDEX: b'{"weight_map": {"v": "m", "w": "m"}}', "m": b""}, "cannot be read by PyTorch"),
    ({INDEX: b'{"weight_map": {"v": "1.safetensors"}}', "1.safetensors": SAFE}, "not of one set: v of 1.safetensors"),
    ({INDEX: b'{"weight_map": {}}'}, "lists no files"),
    ({"model-00001-of-00002.safetensors": SAFE}, "is one of several"),
    ({"a.safetensors": SAFE, "b.safetensors": SAFE}, "has a.safetensors, b.safetensors, none of them"),
    ({"adapter_config.json": b"{}", "model.safetensors": SAFE}, "holds an adapter"),
    ({"pytorch_model.bin": TORCH[:-200]}, "cannot be read by PyTorch"),
    ({"pytorch_model.bin": b""}, "it ends too early"),
    ({"pytorch_model.bin": b"<html>not found</html>"}, "no PyTorch file"),
    ({"pytorch_model.bin": saved(torch.save, [torch.ones(1)])}, "no state dict but a list"),
])  # fmt: skip
def test_what_is_damaged_is_told(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path}.*{message}"):
        open_weights(tmp_path)


def test_of_several_sets_of_weights_the_one_that_transformers_takes_is_read(tmp_path, caplog):
    """Whatever else lies in the folder: files of another name, shards of an older save, the same weights as pickles."""
    order = ["pytorch_model.bin.index.json", "pytorch_model.bin", INDEX, "model.safetensors"]
    for i, name in enumerate(order):
        state = {"w": torch.full((1,), float(i))}
        file = name.replace(".index.json", "-00001-of-00001" + (".safetensors" if name == INDEX else ".bin"))
        if file.endswith(".bin"):
            torch.save(state, tmp_path / file)
        else:
            (tmp_path / file).write_bytes(save(state))
        if file != name:
            (tmp_path / name).write_text(json.dumps({"weight_map": {"w": file}}))
        for other in ("model_old.safetensors", "a.safetensors", "model-00002-of-00009.safetensors", "zz.bin"):
            (tmp_path / other).write_bytes(save({"w": torch.full((1,), 9.0), "stale": torch.ones(1)}))
        with caplog.at_level("INFO"):
            tensors = open_weights(tmp_path)
        assert list(tensors) == ["w"] and tensors["w"].read((slice(None),)) == [i]
        assert file in caplog.messages[-1] and "old" not in caplog.messages[-1]
