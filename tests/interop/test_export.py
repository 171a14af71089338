"""What PyTorch loads is what JAX trained: the same numbers, in a folder that is whole or not there."""

import functools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.errors import UserError
from kosmos_jax.interop.export import export
from kosmos_jax.interop.formats import clip, kosmos2
from kosmos_jax.interop.importing import import_weights
from kosmos_jax.interop.stored import StoredModel
from kosmos_jax.interop.verify import TOLERANCES, Agreement, report, verify
from kosmos_jax.interop.weights import Place, torch_names
from kosmos_jax.model import abstract_model
from tests.inference.conftest import TEXTS
from tests.interop.conftest import SINUSOIDAL

IMAGE = "perception.image"
MODELS = {
    "released": SINUSOIDAL,
    "perceiver": {
        "perception.image.connector.kind": "perceiver",
        "perception.image.connector.layers": 2,
        "perception.image.tokens": 3,
    },
    "both": {
        "text.positions": "both",
        "perception.image.encoder.activation": "gelu",
        "perception.image.encoder.top_layers": 0,
    },
}


@pytest.fixture(scope="module")
def run_of(save_checkpoint):
    return functools.cache(lambda name: save_checkpoint(7, **MODELS[name]))


def check_both_ways(run, to, folder):
    """PyTorch gives our numbers, and an import our bits."""
    out = folder / "out"
    export(run, to, out, max_shard_bytes=60_000)
    agreements = verify(run, to, out, "float32")
    assert len(agreements) == 5 and report(agreements, "float32")[1]
    print(f"{to}: {max(a.relative for a in agreements):.1e} of the largest logit")
    assert all(a.top1 == 1 and a.divergence < 1e-9 for a in agreements)

    before = checkpoint.restore(run)
    back = import_weights(to, out, folder / "back", config=before.config)
    after = checkpoint.restore(back.directory)
    assert before.params.keys() == after.params.keys()
    for name in before.params:
        assert np.array_equal(before.params[name], after.params[name]), name
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.config.model == before.config.model


@pytest.mark.parametrize("model, to", [("released", "hf-kosmos2"), ("perceiver", "hf-remote-code"), ("both", "torch")])
def test_pytorch_gives_our_numbers_and_import_our_bits(run_of, tmp_path, model, to):
    check_both_ways(run_of(model), to, tmp_path)


@st.composite
def models(draw, to):
    """Changes of the tiny model to any other that the target holds, no narrower than LayerNorm's rounding allows."""
    number = lambda least, most: draw(st.integers(least, most))  # noqa: E731
    heads, vision_heads, patch = number(1, 4), number(1, 3), number(2, 6)
    width, vision_layers = heads * 2 * number(8, 12), number(1, 3)
    size = patch * number(1, 4)
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    kosmos2 = to == "hf-kosmos2"
    return {
        "text.positions": "sinusoidal" if kosmos2 else draw(st.sampled_from(["xpos", "sinusoidal", "both"])),
        "text.width": width,
        "text.heads": heads,
        "text.ffn": number(16, 80),
        "text.layers": number(1, 3),
        "perception.image.encoder.patch_size": patch,
        "perception.image.shape": (size, size, 3),
        "perception.image.encoder.width": vision_heads * number(16, 20),
        "perception.image.encoder.heads": vision_heads,
        "perception.image.encoder.ffn": number(16, 50),
        "perception.image.encoder.layers": vision_layers,
        "perception.image.encoder.top_layers": number(0, vision_layers),
        "perception.image.encoder.activation": draw(st.sampled_from(["quick_gelu", "gelu"])),
        "perception.image.connector.kind": "xconnector"
        if kosmos2
        else draw(st.sampled_from(["xconnector", "perceiver"])),
        "perception.image.connector.heads": heads if kosmos2 else draw(st.sampled_from(divisors)),
        "perception.image.connector.layers": 1 if kosmos2 else number(1, 2),
        "perception.image.tokens": number(1, 6),
    }


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torch", "hf-kosmos2"])
@given(data=st.data())
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])  # to shrink would take an hour
def test_any_model_goes_to_pytorch_and_back(save_checkpoint, tmp_path_factory, to, data):
    changes, pieces, tags = data.draw(models(to)), data.draw(st.integers(40, 45)), data.draw(st.booleans())
    tokenizer = Tokenizer.train(TEXTS, pieces, kosmos2_tags=tags)
    run = save_checkpoint(data.draw(st.integers(0, 99)), tokenizer, **changes)
    check_both_ways(run, to, tmp_path_factory.mktemp("both_ways"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shorter_numbers_cost_what_they_must(run_of, tmp_path, dtype):
    export(run_of("perceiver"), "torch", tmp_path / "out", dtype)
    worst = max(a.relative for a in verify(run_of("perceiver"), "torch", tmp_path / "out", dtype))
    assert TOLERANCES["float32"] < worst < TOLERANCES[dtype]
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype


def test_a_wrong_weight_is_not_equal(run_of, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Place,
        "to_torch",
        lambda place, array: np.ascontiguousarray(array.T if place.transposed else array * 1.001),
    )
    export(run_of("released"), "torch", tmp_path / "out")
    agreements = verify(run_of("released"), "torch", tmp_path / "out", "float32")
    text, good = report(agreements, "float32")
    assert not good and "NOT EQUAL" in text


def test_what_is_no_number_is_not_equal():
    agreements = [Agreement("text", *(0.0,) * 3, 1.0), Agreement("one image in a row", *(np.nan,) * 4)]
    assert report(agreements[:1], "float32")[1] and not report(agreements, "float32")[1]


@pytest.mark.parametrize("missing", ["tokenizers", "torch"])
def test_what_is_missing_is_told_before_anything_is_written(run_of, tmp_path, monkeypatch, capsys, missing):
    for module in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(checkpoint, "read_record", None)
    words = ["export", "--checkpoint", str(run_of("both")), "--to", "torch", "--out", f"{tmp_path}/out", "--verify"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{missing} is needed" in error and "pip install 'kosmos_jax[torch]'\n" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damaged, message", [("_METADATA", "no JSON"), ("d/*", "cannot be read as a checkpoint")])
def test_a_damaged_checkpoint_is_told_and_leaves_nothing(run_of, tmp_path, damaged, message):
    shutil.copytree(run_of("both"), tmp_path / "run")
    for file in (tmp_path / "run/checkpoints/0/params").rglob(damaged):
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"params.* {message}"):
        export(tmp_path / "run", "torch", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "change, word",
    [
        ({"text.positions": "xpos"}, "sinusoids"),
        ({"perception.image.connector.kind": "perceiver"}, "xconnector"),
        ({"perception.image.connector.heads": 2}, "heads"),
    ],
)
def test_kosmos2_refuses_what_it_cannot_hold_and_names_the_target_that_can(save_checkpoint, tmp_path, change, word):
    with pytest.raises(UserError, match=f"{word}.*hf-remote-code"):
        export(save_checkpoint(**SINUSOIDAL | change), "hf-kosmos2", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(run_of, tmp_path, monkeypatch):
    def interrupted(self, path, layer=None):
        if "fc2" in path:
            raise KeyboardInterrupt
        return read(self, path, layer)

    read = StoredModel.read
    monkeypatch.setattr(StoredModel, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(run_of("released"), "torch", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(run_of, tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    words = ["export", "--checkpoint", str(run_of("released")), "--to", "torch", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "new folder" in capsys.readouterr().err and (tmp_path / "mine").read_text() == "precious"


def test_the_moving_average_is_what_goes_out(save_checkpoint, tmp_path):
    """As inference takes it: a checkpoint's `average` replaces the weights that have one."""
    raw, average = Path(save_checkpoint(1)), Path(save_checkpoint(2))
    shutil.copytree(average / "checkpoints/0/params", raw / "checkpoints/0/average")
    export(raw, "torch", tmp_path / "out")
    from safetensors.torch import load_file

    expected = checkpoint.restore(average).params["embedding"]
    assert torch.equal(
        load_file(tmp_path / "out/model.safetensors")["embedding.weight"], torch.from_numpy(np.array(expected))
    )


@pytest.mark.parametrize("rename", [kosmos2.names, clip.openai_names])
def test_no_two_tensors_get_one_name(rename):
    from configs import kosmos1
    from kosmos_jax.config import apply_overrides

    ours = torch_names(abstract_model(apply_overrides(kosmos1.get_config(), []).model)[1])
    mine = {kosmos2.names: "", clip.openai_names: "image.encoder"}[rename]
    kept = [name for name in ours if name.startswith(mine)]
    assert len({rename(name) for name in kept}) == len(kept)
