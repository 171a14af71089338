"""What PyTorch loads is what JAX trained: the same numbers, in a folder that is whole or not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.errors import UserError
from kosmos_jax.interop.export import export
from kosmos_jax.interop.importing import import_weights
from kosmos_jax.interop.names import kosmos2, openai, torch_names, torchscale, unilm
from kosmos_jax.interop.stored import StoredModel
from kosmos_jax.interop.verify import TOLERANCES, report, verify
from kosmos_jax.model import abstract_model
from tests.interop.conftest import SINUSOIDAL
from tests.model.torchscale_alone import torchscale_alone

MODELS = {
    "released": SINUSOIDAL,
    "perceiver": {"connector.kind": "perceiver", "connector.layers": 2, "connector.tokens": 3},
    "xpos": {"text.width": 48, "text.heads": 3, "connector.heads": 6, "text.layers": 2},
    "both": {"text.positions": "both", "vision.activation": "gelu", "vision.top_layers": 0},
    "all top": {**SINUSOIDAL, "vision.top_layers": 3, "vision.image_size": 24, "text.ffn": 40},
}
PAIRS = [("released", "hf-kosmos2"), ("all top", "hf-kosmos2")]
PAIRS += [(model, "torch") for model in MODELS] + [("perceiver", "hf-remote-code")]


@pytest.fixture(scope="module")
def run_of(save_checkpoint):
    made = {}
    return lambda name: (
        made.setdefault(name, None) or made.update({name: save_checkpoint(7, **MODELS[name])}) or made[name]
    )


@pytest.mark.parametrize("model, to", PAIRS)
def test_pytorch_gives_our_numbers_and_import_our_bits(run_of, tmp_path, model, to):
    run, out = run_of(model), tmp_path / "out"
    export(run, to, out, max_shard_bytes=60_000)
    agreements = verify(run, to, out, "float32")
    assert len(agreements) == 5 and report(agreements, "float32")[1]
    print(f"{model} as {to}: {max(a.relative for a in agreements):.1e} of the largest logit")
    assert all(a.top1 == 1 and a.divergence < 1e-9 for a in agreements)

    before = checkpoint.restore(run)
    back = import_weights(to, out, tmp_path / "back", config=before.config)
    after = checkpoint.restore(back.directory)
    assert before.params.keys() == after.params.keys()
    for name in before.params:
        assert np.array_equal(before.params[name], after.params[name]), name
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.config.model == before.config.model


@pytest.mark.parametrize("model", ["released", "xpos", "both"])
def test_torchscale_takes_the_decoder(run_of, tmp_path, model):
    with torchscale_alone():
        export(run_of(model), "torchscale", tmp_path / "out")
        agreements = verify(run_of(model), "torchscale", tmp_path / "out", "float32")
    assert [a.case for a in agreements] == ["text"] and report(agreements, "float32")[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shorter_numbers_cost_what_they_must(run_of, tmp_path, dtype):
    export(run_of("perceiver"), "torch", tmp_path / "out", dtype)
    worst = max(a.relative for a in verify(run_of("perceiver"), "torch", tmp_path / "out", dtype))
    assert TOLERANCES["float32"] < worst < TOLERANCES[dtype]
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype


def test_a_wrong_weight_is_not_equal(run_of, tmp_path, monkeypatch):
    from kosmos_jax.interop import names

    monkeypatch.setattr(
        names.Place,
        "to_torch",
        lambda place, array: np.ascontiguousarray(array.T if place.transposed else array * 1.001),
    )
    export(run_of("released"), "torch", tmp_path / "out")
    agreements = verify(run_of("released"), "torch", tmp_path / "out", "float32")
    text, good = report(agreements, "float32")
    assert not good and "NOT EQUAL" in text


@pytest.mark.parametrize(
    "change, word",
    [
        ({"text.positions": "xpos"}, "sinusoids"),
        ({"connector.kind": "perceiver"}, "xconnector"),
        ({"connector.heads": 2}, "heads"),
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
    import shutil

    raw, average = Path(save_checkpoint(1)), Path(save_checkpoint(2))
    shutil.copytree(average / "checkpoints/0/params", raw / "checkpoints/0/average")
    export(raw, "torch", tmp_path / "out")
    from safetensors.torch import load_file

    expected = checkpoint.restore(average).params["embedding"]
    assert torch.equal(
        load_file(tmp_path / "out/model.safetensors")["embedding.weight"], torch.from_numpy(np.array(expected))
    )


@pytest.mark.parametrize("rename", [kosmos2, unilm, torchscale, openai])
def test_no_two_tensors_get_one_name(rename):
    from configs import kosmos1
    from kosmos_jax.config import apply_overrides

    ours = torch_names(abstract_model(apply_overrides(kosmos1.get_config(), []).model)[1])
    mine = {kosmos2: "", unilm: "", torchscale: ("decoder", "embedding"), openai: "vision"}[rename]
    kept = [name for name in ours if name.startswith(mine)]
    assert len({rename(name) for name in kept}) == len(kept)
