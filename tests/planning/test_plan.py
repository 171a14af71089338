"""Plans: memory as the compiler has it, refusals in words, the search, and real compilations for TPUs and GPUs."""

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import make_tokenizer
from kosmos_jax.config import apply_overrides, load_config
from kosmos_jax.errors import UserError
from kosmos_jax.model import abstract_model
from kosmos_jax.parallel.attention import attention_for
from kosmos_jax.parallel.mesh import make_mesh, row_shards
from kosmos_jax.parallel.sharding import parameter_specs
from kosmos_jax.parallel.topology import parse
from kosmos_jax.planning import advice, command, devices, hlo, isolated, memory, search, table, work
from kosmos_jax.planning.plan import WITHOUT_DEVICE, Plan, make_plan, mesh_sizes, prepared
from kosmos_jax.planning.report import report
from kosmos_jax.planning.roofline import Roofline
from kosmos_jax.training.compile import batch_shapes, make_step
from kosmos_jax.training.feed import batch_shardings

CONFIG = str(Path(__file__).parents[1] / "training/tiny_run.py")
SIZES = "configs/kosmos1_sizes.py"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def config():
    return load_config(CONFIG, ["mesh.data=2", "mesh.fsdp=4"])


def test_the_shapes_of_a_batch_follow_from_the_config_alone(config, tmp_path):
    config = apply_overrides(config, ["training.microbatches=1", "data.batch_rows=16"])
    mesh = make_mesh(config.mesh)
    mixture = Mixture(config, make_tokenizer(config, tmp_path), "train", tmp_path, row_shards(mesh))
    expected = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), mixture.arrays)
    assert batch_shapes(config, mesh) == expected


def test_a_deeper_model_is_no_longer_program(config):
    """What the compiler gets for 96 layers is what it gets for 24, so compiling takes as long."""

    def lines(layers):
        deep = apply_overrides(config, [f"model.{tower}.layers={count}" for tower, count in layers.items()])
        mesh = make_mesh(deep.mesh)
        step = make_step(deep, mesh)
        return step.function.lower(step.abstract, batch_shapes(deep, mesh)).as_text().count("\n")

    encoder = "perception.image.encoder"
    assert lines({"text": 24, encoder: 24}) == lines({"text": 96, encoder: 48})


@pytest.mark.slow
def test_the_arguments_are_as_large_as_the_compiler_says(config):
    mesh = make_mesh(config.mesh)
    step, batch = make_step(config, mesh), batch_shapes(config, mesh)
    sizes = memory.argument_bytes(step, batch, batch_shardings(config.model, mesh))
    stats = step.function.lower(step.abstract, batch).compile().memory_analysis()
    scalars = 5 * 4  # counters of the state
    assert abs(stats.argument_size_in_bytes - sum(sizes.values())) <= scalars
    held = memory.by_kind(stats, sizes)
    assert held["temporaries"] > 0
    assert held["waiting batches"] == 2 * sizes["batch"]
    # Two moments for every parameter, and the optimizer's counters.
    assert 0 <= sizes["optimizer"] - 2 * sizes["parameters"] <= 16


@pytest.mark.parametrize(
    "message, temporaries",
    [
        ("RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (16.50G) exceeds available HBM.", 16.5),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm.", 18.0),
    ],
)
def test_the_compilers_refusal_is_read(message, temporaries):
    assert memory.refused(message, 2 * 2**30) == temporaries * 2**30


def test_other_failures_of_the_compiler_are_not_taken_for_a_lack_of_memory():
    assert memory.refused("INTERNAL: something else", 0) is None


@pytest.mark.parametrize("topology, package", [("v5e:2x2", "libtpu"), ("h100:1x8", "jax-cuda13-plugin")])
def test_a_missing_compiler_is_named_with_what_to_install(config, topology, package, monkeypatch):
    monkeypatch.setattr(devices, "_installed", lambda package: False)
    with pytest.raises(UserError, match=f"{package}.*pip install"):
        make_plan(config, parse(topology))


def test_a_plan_is_made_in_the_arithmetic_of_the_target():
    config = load_config(f"{SIZES}:0.1b")
    assert config.model.dtype == "auto"
    made = prepared(config, parse("v5e:4x4"), "fsdp_tp", training__microbatches=4)
    assert made.model.dtype == "bfloat16"
    assert made.training.microbatches == 4
    assert dict(made.mesh) == dict(data=1, fsdp=4, tensor=4, context=1)


def example(fits=True, used=8, seconds=1.0, **settings) -> Plan:
    times = Roofline(seconds, 0.4, 0.2, 0.0, 0.1)
    return Plan(
        topology="v5e:4x4",
        chips=16,
        mesh=dict(data=1, fsdp=16, tensor=1, context=1),
        settings=dict(model="tiny", rows=64, seq_len=8, microbatches=1, remat="none") | settings,
        parameters=dict(decoder=10, total=10, trainable=10),
        memory=dict(parameters=2**29, temporaries=used * 2**30 - 2**29),
        limit=16 * 2**30,
        model_flops=dict(decoder=1e12),
        compile_seconds=1.0,
        program_flops=1.3e12,
        roofline=times if fits else None,
        mfu=0.5 if fits else None,
    )


def test_a_plan_that_does_not_fit_says_what_to_change():
    text = report(example(fits=False, used=20))
    assert "DOES NOT FIT" in text
    assert "--config.model.remat=full" in text
    assert "--config.training.microbatches=2" in text
    assert "25% too much" in text


def test_a_state_that_is_too_large_names_the_devices_that_would_hold_it():
    """12 GiB on each of 16 devices, of which 10 are parameters and optimizer: 160 GiB, and 8 GiB a device."""
    held = dict(parameters=4 * 2**30, optimizer=6 * 2**30, batch=2**30, temporaries=0)
    plan = dataclasses.replace(example(fits=False), memory=held | {"waiting batches": 2**30}, limit=8 * 2**30)
    assert not plan.state_fits
    assert advice.advice(plan) == [
        "one copy of parameters and optimizer is 160 GiB: it takes more than 20 devices, each with a part of it"
    ]
    assert "mesh.data=2" in advice.advice(dataclasses.replace(plan, mesh=plan.mesh | {"data": 2}))[-1]
    batches = held | {"parameters": 2**30, "waiting batches": 2**30}
    assert "batch_rows" in advice.advice(dataclasses.replace(plan, memory=batches))[0]


def test_a_plan_names_what_binds():
    text = report(example())
    assert "<- binding" in next(line for line in text.splitlines() if line.startswith("  compute"))
    assert "50% left" in text


def test_a_plan_survives_json():
    plan = json.loads(json.dumps(example().as_dict()))
    assert plan["fits"] and plan["binding"] == "compute"
    assert plan["used"] == 8 * 2**30


def test_fit_finds_the_fastest_that_fits(monkeypatch):
    """A model of memory and time: more microbatches need less and take longer, remat likewise."""
    tried = []

    def pretend(config, topology, mesh, training__microbatches, model__remat):
        tried.append((mesh, training__microbatches, model__remat))
        keeps = {"none": 40, "dots": 20, "full": 10}[model__remat] * (2 if mesh == "dp" else 1)
        used = keeps / training__microbatches
        seconds = {"none": 1.0, "dots": 1.1, "full": 1.3}[model__remat] + 0.2 * training__microbatches
        plan = example(used=used, seconds=seconds, microbatches=training__microbatches, remat=model__remat)
        return plan if used <= 16 else dataclasses.replace(plan, roofline=None)

    monkeypatch.setattr(search, "isolated_plan", pretend)
    config = load_config(f"{SIZES}:0.1b", ["data.batch_rows=128"])
    best = search.fit(config, parse("v5e:4x4"), "fsdp")
    assert (best.settings["remat"], best.settings["microbatches"]) == ("full", 1)
    assert ("fsdp", 4, "none") in tried


@pytest.mark.parametrize(
    "size, topology, slices, wanted",
    [
        ("1.6b", "v5p:4x4x4", 1, ("fsdp", "full", 1)),
        ("1.6b", "v5e:16x16", 2, ("hsdp", "full", 1)),  # a slice holds the state
        ("30b", "h100:8x8", 1, ("fsdp", "full", 1)),  # a host does not
        ("7b", "v5e:4x4", 1, ("fsdp", "full", 9)),
    ],
)
def test_the_rule_of_thumb(size, topology, slices, wanted):
    rows = table.rows_for(parse(topology, slices).devices)
    config = load_config(f"{SIZES}:{size}", [f"data.batch_rows={rows}"])
    mesh, remat, counts = search.rule(config, parse(topology, slices))
    assert (mesh, remat, counts[0]) == wanted


@pytest.mark.parametrize("size", table.SIZES)
def test_in_no_cell_of_the_table_more_than_two_percent_of_the_parameters_are_replicated(size):
    model = load_config(f"{SIZES}:{size}").model
    _, shapes = abstract_model(model)
    for text, slices in table.HARDWARE:
        topology = parse(text, slices)
        config = table.config_for(size, topology)
        sizes = mesh_sizes(config, topology, search.rule(config, topology).mesh)
        specs = parameter_specs(model, shapes, AbstractMesh(tuple(sizes.values()), tuple(sizes)))
        replicated = sum(shapes[path].size for path, spec in specs.items() if not any(spec))
        assert replicated <= 0.02 * sum(leaf.size for leaf in shapes.values()), (text, sizes)


def test_rows_that_do_not_divide_are_an_error_with_what_to_try():
    with pytest.raises(UserError, match="batch_rows=576 does not divide over the 256 ways.*try 512 or 768"):
        search.rule(load_config("configs/kosmos1.py"), parse("v5e:16x16"))


@pytest.mark.parametrize(
    "fits_from, reading, asked, taken",
    [
        (4, {}, [1, 3, 9], 9),  # the first that fits
        (1, {}, [1], 1),
        (1, {1: 4.0, 3: 2.0, 9: 3.0}, [1, 3, 9], 3),  # reading memory binds: more, until it gets no better
        (1, {1: 4.0, 3: 0.5}, [1, 3], 3),  # or until something else binds
        (1, {1: 4.0, 3: None}, [1, 3], 1),  # or the compiler crashes
        (99, {}, [1, 3, 9], 9),  # nothing fits
    ],
)
def test_a_plan_by_rule_takes_more_microbatches_where_they_help(fits_from, reading, asked, taken, monkeypatch):
    tried = []

    def pretend(config, topology, mesh, training__microbatches, model__remat):
        tried.append(training__microbatches)
        plan = example(fits=training__microbatches >= fits_from, microbatches=training__microbatches)
        if plan.roofline:
            memory_seconds = reading.get(training__microbatches, 0.1)
            if memory_seconds is None:
                raise UserError("crashed")
            times = dataclasses.replace(plan.roofline, memory=memory_seconds)
            plan = dataclasses.replace(plan, roofline=times)
        return plan

    monkeypatch.setattr(search, "isolated_plan", pretend)
    plan = search.plan_by_rule(load_config(f"{SIZES}:1.6b"), parse("v5p:4x4x4"))
    assert tried == asked
    assert plan.settings["microbatches"] == taken
    others = [count for count in asked if count != taken and reading.get(count, 0) is not None]
    assert [note.split()[3] for note in plan.notes] == [str(count) for count in others]


def test_meshes_that_come_to_the_same_are_tried_once(config):
    assert search.meshes(config, parse("v5e:4x4")) == ["dp", "fsdp", "fsdp_tp", "fsdp_cp"]
    assert len(search.meshes(config, parse("h100:2x8"))) == 7


def test_the_table_has_a_row_for_every_plan_and_for_every_failure():
    cells = {
        table.key("0.4b", parse("v5e:4x4")): example().as_dict(),
        table.key("1.6b", parse("v5e:4x4")): {"topology": "v5e:4x4", "error": "nothing could be compiled"},
    }
    rows = table.markdown(cells).splitlines()[2:]
    assert len(rows) == 2
    assert all(row.count("|") == len(table.COLUMNS) + 1 for row in rows)
    assert "fsdp=16" in rows[0] and "50%" in rows[0]


def test_costs_are_those_of_runs_that_fit_at_a_price():
    """16 chips for 300,000 steps of a second: 1,333 chip-hours."""
    fits, fits_not = (dict(example(fits=fits).as_dict(), step_seconds_at_least=1.0) for fits in (True, False))
    topology = parse("v5e:4x4")
    cells = {table.key("0.4b", topology): fits, table.key("1.6b", topology): fits_not}
    lines = table.costs(cells, dict(v5e=1.5, h100=9.0)).splitlines()
    assert lines[2:] == ["0.4b    v5e:4x4                  3.5       1,333         2,000"]


def needs(package):
    return pytest.mark.skipif(not devices._installed(package), reason=f"pip install {package}")


needs_libtpu = needs("libtpu")
SPLASH = ("splash_mha_dkv", "splash_mha_dq", "splash_mha_fwd")
TRITON = ("mha_backward", "mha_forward", "mha_preprocess_backward")


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology, width, names",
    [
        pytest.param("v5e:2x2", 64, SPLASH, marks=needs_libtpu),
        pytest.param("v5p:2x2x1", 96, SPLASH, marks=needs_libtpu),
        pytest.param("h100:1x4", 64, TRITON, marks=needs("jax-cuda13-plugin")),
    ],
)
def test_attention_is_compiled_with_the_kernel_of_the_target_and_its_work_is_counted(topology, width, names):
    devices.examine_only()
    topology = parse(topology)
    mesh = make_mesh(dict(data=1, fsdp=4, tensor=1, context=1), devices.make_devices(topology))
    attention = attention_for(mesh, ConfigDict(dict(attention="auto", attention_dropout=0.0)))
    rows, length, heads = 8, 1024, 2
    placed = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P("fsdp")))
    qkv, segments = placed((rows, length, heads, width), jnp.bfloat16), placed((rows, length), jnp.int32)
    gradient = jax.grad(lambda q, k, v, s: attention(q, k, v, s, s).astype(jnp.float32).sum(), (0, 1, 2))
    compiled = jax.jit(gradient).lower(qkv, qkv, qkv, segments)
    program = hlo.parse(compiled.compile(compiler_options=WITHOUT_DEVICE[topology.chip.kind]).as_text())
    assert work.kernels(program) == set(names) and not work.opaque_kernels(program)
    # Nine products, half of each; XLA's own small reductions come on top.
    expected = 9 * rows / 4 * heads * length**2 * width
    assert expected <= work.flops(program) <= 1.01 * expected


@pytest.mark.slow
@needs_libtpu
def test_a_step_compiles_for_tpus_that_are_not_there(config):
    devices.examine_only()
    topology = parse("v5e:2x2")
    config = apply_overrides(config, ["data.seq_len=128"])
    plan = make_plan(prepared(config, topology, "fsdp"), topology)
    assert plan.fits and plan.kernels == SPLASH
    assert plan.traffic and {row.network for row in plan.traffic} == {"ICI"}
    assert plan.program_flops >= 0.9 * sum(plan.model_flops.values())
    assert not plan.notes


@pytest.mark.slow
@needs("jax-cuda13-plugin")
@pytest.mark.parametrize("size, hardware", [("0.4b", "h100-mega:1x8"), ("1.6b", "h100-mega:8x8")])
def test_a_cell_of_the_table_in_the_docs_is_what_the_planner_says(size, hardware):
    """Whatever jax is installed: another compiler may do a little better or worse."""
    topology = parse(hardware)
    told = json.loads((DOCS / "plans.json").read_text())[table.key(size, topology)]
    found = search.plan_by_rule(table.config_for(size, topology), topology).as_dict()
    for name in ("mesh", "settings", "parameters", "limit", "model_flops", "fits"):
        assert found[name] == told[name], name
    assert found["kernels"] == TRITON
    for name in ("used", "program_flops", "step_seconds_at_least", "mfu"):
        assert found[name] == pytest.approx(told[name], rel=0.1), name


@pytest.mark.slow
@needs_libtpu
def test_slices_stand_along_the_data_axis():
    devices.examine_only()
    topology = parse("v5e:2x2", slices=2)
    sizes = load_config(CONFIG, ["mesh.data=2", "mesh.fsdp=4"]).mesh
    mesh = make_mesh(sizes, devices.make_devices(topology))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert jax.tree.all([(slices[i] == slices[i].flat[0]).all() for i in range(2)])
    assert slices[0].flat[0] != slices[1].flat[0]
    with pytest.raises(UserError, match="slices"):
        make_mesh(load_config(CONFIG, ["mesh.fsdp=1", "mesh.tensor=8"]).mesh, devices.make_devices(topology))


@pytest.mark.parametrize("used, status", [(8, 0), (20, 1)])
def test_the_exit_status_says_whether_it_fits(used, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(isolated, "isolated_plan", lambda *args, **kwargs: example(used=used))
    out = tmp_path / "plan.json"
    args = argparse.Namespace(
        config=CONFIG, overrides=[], topology="v5e:4x4", slices=1, mesh=None, fit=False, json=str(out)
    )
    assert command.plan(args) == status
    assert json.loads(out.read_text())["fits"] == (status == 0)
    assert "memory of a device" in capsys.readouterr().out


def test_a_mistyped_topology_stops_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(isolated, "isolated_plan", lambda *args, **kwargs: pytest.fail("compiled"))
    args = argparse.Namespace(
        config=CONFIG, overrides=[], topology="v5e:4x5", slices=1, mesh=None, fit=False, json=None
    )
    with pytest.raises(UserError, match="v5e has no slice of this shape"):
        command.plan(args)
