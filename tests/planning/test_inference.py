"""Plans for generation: bytes of a token, slots that fit, refusals in words, and a cell of the table in the docs."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from kosmos_jax.config import apply_overrides, load_config
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.parallel.topology import parse
from kosmos_jax.planning import command, devices, inference, inference_table, isolated
from kosmos_jax.planning.plan import prepared
from kosmos_jax.planning.report import inference_report
from kosmos_jax.planning.table import key

CONFIG = str(Path(__file__).parents[1] / "training/tiny_run.py")
SIZES = "configs/kosmos1_sizes.py"
DOCS = Path(__file__).parents[2] / "docs"


def config_for(path: str, topology, **mesh):
    config = load_config(path)
    sizes = inference.default_mesh(config, topology) | mesh
    return prepared(config, topology, **{f"mesh__{axis}": size for axis, size in sizes.items()})


@pytest.mark.parametrize("size, kib", [("1.6b", 192), ("7b", 512), ("30b", 1344)])
def test_keys_and_values_of_a_token(size, kib):
    config = config_for(f"{SIZES}:{size}", parse("h100:1x8"))
    mesh = make_mesh(config.mesh, jax.devices())
    page = inference.device_for(config, mesh, 256).shapes(256, 8)["page"]
    assert 8 * inference.on_device((page.k_BHSK, page.v_BHSK)) == 256 * kib * 1024


def test_int8_takes_a_byte_for_a_number_and_a_scale_for_each_head():
    config = config_for(f"{SIZES}:1.6b", parse("h100:1x8"))
    mesh, sizes = make_mesh(config.mesh, jax.devices()), {}
    for int8 in ((), ("weights", "cache")):
        shapes = inference.device_for(config, mesh, 256, int8).shapes(256, 8)
        sizes[int8] = [inference.on_device(shapes[name]) for name in ("weights", "page")]
    full, eight = sizes.values()
    assert eight[1] / full[1] == pytest.approx((1 + 4 / 64) / 2, rel=0.01)
    assert eight[0] < 0.8 * full[0]  # the embedding, which every device holds here, stays, and the encoder


@pytest.fixture(scope="module")
def plan():
    """Made on devices of this machine, which compile as others do; mesh.data and mesh.tensor are 2."""
    topology = parse("h100:1x4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "make_devices", lambda topology: jax.devices()[: topology.devices])
        return inference.make_inference_plan(config_for(CONFIG, topology), topology, {32: 8, 64: 4})


def test_the_programs_are_compiled_and_examined(plan):
    assert plan.fits and (plan.mesh["data"], plan.mesh["tensor"]) == (2, 2)
    assert [(pool.length, pool.slots) for pool in plan.pools] == [(32, 8), (64, 4)]
    assert set(plan.programs) == {"decode 32 x 8", "read 32"}
    assert "all-reduce" in {row.kind for row in plan.traffic}
    text = inference_report(plan)
    assert "bounds from peak rates, not measurements" in text and text.endswith("fits")


def test_the_bound_of_a_step_is_reading_weights_keys_and_values(plan):
    """Half of the heads of two slots of 64 tokens, or four of 32, are on a device; for one of 32 a quarter is read."""
    text, bandwidth = load_config(CONFIG).model.text, parse("h100:1x1").chip.hbm_bandwidth
    slot = 2 * 32 * text.layers * text.width / 2 * 4  # float32, as the config has it
    assert plan.token_bytes == 2 * slot / 32
    assert plan.pools[0].step.memory == pytest.approx(plan.pools[1].step.memory)
    assert (plan.pools[0].step.memory - plan.alone.memory) * bandwidth == pytest.approx(3 * slot)
    assert plan.pools[0].step.compute == pytest.approx(4 * plan.alone.compute)


def test_slots_come_down_until_temporaries_fit(monkeypatch):
    shares = []

    def pretend(config, topology, mesh, share, int8):
        """Temporaries take as much as slots."""
        shares.append(share)
        held = dict(weights=10, slots=int(90 * share), temporaries=int(90 * share))
        fits = sum(held.values()) <= 100
        return argparse.Namespace(fits=fits, programs={"decode": 1}, memory=held, limit=100, used=sum(held.values()))

    monkeypatch.setattr(inference, "_plan", pretend)
    monkeypatch.setattr(inference, "make_devices", lambda topology: jax.devices()[:1])
    topology = parse("h100:1x1")
    assert inference.make_inference_plan(config_for(CONFIG, topology), topology).fits
    assert len(shares) == 2 and 0.4 < shares[1] < 0.5


def test_weights_that_are_too_large_are_told_without_the_compiler(monkeypatch):
    monkeypatch.setattr(inference, "make_devices", lambda topology: jax.devices()[:4])
    topology = parse("v5e:2x2")
    plan = inference.make_inference_plan(config_for(f"{SIZES}:30b", topology), topology)
    assert not plan.fits and not plan.programs
    text = inference_report(plan)
    assert "the compiler was not asked" in text and "DOES NOT FIT: more devices, or --int8" in text


@pytest.mark.parametrize(
    "mesh, slots, message",
    [
        (dict(tensor=8, data=1), {}, "does not divide the 2 heads.*try 2"),
        (dict(tensor=2, data=2), {64: 3}, "mesh.data=2 does not divide 3 slots.*try 4"),
        (dict(tensor=2, data=2), {100: 2}, "multiple of 32"),
        (dict(tensor=2, data=2), {1048576: 2}, "at most"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(mesh, slots, message):
    text = load_config(CONFIG).model.text
    with pytest.raises(UserError, match=message):
        inference.check(text, mesh, slots)


@pytest.mark.parametrize(
    "size, topology, data, tensor",
    [("1.6b", "h100:1x1", 1, 1), ("30b", "v5e:2x4", 1, 8), ("1.6b", "v5p:4x4x4", 2, 32), ("7b", "h100:2x8", 2, 8)],
)
def test_heads_are_split_as_far_as_they_go(size, topology, data, tensor):
    sizes = inference.default_mesh(load_config(f"{SIZES}:{size}"), parse(topology))
    assert (sizes["data"], sizes["tensor"]) == (data, tensor)


def test_the_command_prints_a_plan_and_says_whether_it_fits(plan, tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / "plan.json"
    monkeypatch.setattr(isolated, "isolated_inference_plan", lambda *question: asked.append(question[2:]) or plan)
    args = dict(config=CONFIG, overrides=[], topology="h100:1x4", slices=1, mesh="", fit=False, slots="64x2", int8=[])
    assert command.plan_inference(argparse.Namespace(**args, json=str(out))) == 0
    assert asked == [(False, {64: 2}, [])]
    told = json.loads(out.read_text())
    assert told["fits"] and told["tokens_per_second"]["one slot"] > 0 and told["pools"][0]["binding"]
    assert "tokens/s at most" in capsys.readouterr().out
    with pytest.raises(UserError, match="no --fit"):
        command.plan_inference(argparse.Namespace(**args | dict(fit=True), json=None))


def test_the_table_has_a_row_for_every_plan_and_for_every_failure():
    told = json.loads((DOCS / "inference_plans.json").read_text())
    cells = told | {key("7b", parse("v5e:2x4")): {"topology": "v5e:2x4", "error": "nothing could be compiled"}}
    rows = inference_table.markdown(cells).splitlines()[2:]
    assert len(rows) == len(cells)
    assert all(row.count("|") == len(inference_table.COLUMNS) + 1 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not devices._installed("jax-cuda13-plugin"), reason="pip install jax-cuda13-plugin")
def test_a_cell_of_the_table_in_the_docs_is_what_the_planner_says():
    """Whatever jax is installed: another compiler may do a little better or worse."""
    topology = parse("h100:1x8")
    told = json.loads((DOCS / "inference_plans.json").read_text())[key("1.6b", topology)]
    found = json.loads(json.dumps(inference_table.cell("1.6b", topology)))
    for name in ("mesh", "token_bytes", "limit", "fits", "pools"):
        if name == "pools":
            found[name], told[name] = (
                [(p["length"], p["slots"], p["slot_bytes"]) for p in x[name]] for x in (found, told)
            )
        assert found[name] == told[name], name
    for name in ("used", "moved"):
        assert found[name] == pytest.approx(told[name], rel=0.1), name
    assert found["tokens_per_second"] == pytest.approx(told["tokens_per_second"], rel=0.1)
    # A step sends products of the rows, and the most likely token of each part of the vocabulary; no weight, no cache.
    assert {row["kind"] for row in found["traffic"]} == {"all-reduce", "all-gather"}
    assert sum(row["bytes"] for row in found["traffic"] if row["kind"] == "all-gather") < 2**20
    assert not [note for note in found["notes"] if "copies" in note or "receives" in note]


@pytest.mark.slow
@pytest.mark.parametrize("hardware", ["h100:1x8", "v5e:2x4"])
def test_a_step_has_no_loop_over_slots_and_brings_no_scores_to_every_device(hardware):
    topology = parse(hardware)
    if not devices._installed("jax-cuda13-plugin" if topology.chip.kind == "gpu" else "libtpu"):
        pytest.skip("pip install 'kosmos_jax[plan]'")
    config = apply_overrides(config_for(f"{SIZES}:1.6b", topology), TWO_LAYERS)
    plan = isolated.isolated_inference_plan(config, topology, slots={256: 256})
    assert not [note for note in plan.notes if "loops" in note or "copies" in note or "receives" in note], plan.notes
    assert {row.kind for row in plan.traffic} <= {"all-reduce", "reduce-scatter", "all-gather"}
    scores = 256 * 64_128 * 4  # what one device would receive
    assert max(row.bytes for row in plan.traffic) < scores / 4


TWO_LAYERS = ["model.text.layers=2"]
WITH_CUDNN = """
import pytest
from kosmos_jax.planning import devices, hlo, inference
from tests.parallel.test_attention import with_cudnn
from tests.planning.test_inference import SIZES, TWO_LAYERS, apply_overrides, config_for, parse

devices.examine_only()
with_cudnn(pytest.MonkeyPatch().setattr)
texts, parsed = [], hlo.parse
hlo.parse = lambda text: texts.append(text) or parsed(text)
topology = parse("h100:1x1")
plan = inference.make_inference_plan(
    apply_overrides(config_for(f"{SIZES}:1.6b", topology), TWO_LAYERS), topology, {256: 256}
)
print([text.count('custom_call_target="__cudnn$fmhaSoftmax"') for text in texts], *plan.notes, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(not devices._installed("jax-cuda13-plugin"), reason="pip install jax-cuda13-plugin")
def test_on_a_gpu_with_cudnn_a_step_reads_each_layers_cache_by_cudnn_where_it_lies():
    """In a process of its own, which takes cuDNN for installed."""
    ended = subprocess.run([sys.executable, "-c", WITH_CUDNN], capture_output=True, text=True, cwd=DOCS.parent)
    assert ended.stdout.splitlines()[:1] == ["[2, 0]"], ended.stderr[-2000:]  # of the programs that write and read
    assert "copies" not in ended.stdout
