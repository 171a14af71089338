"""Names of hardware and meshes: read, refused with a hint, and counted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.hardware import CHIPS, chip_of
from kosmos_jax.parallel.mesh import AXES, PRESETS, preset
from kosmos_jax.parallel.topology import parse, shapes

TPUS = [chip for chip in CHIPS.values() if chip.kind == "tpu"]


SLICES = [(chip, shape) for chip in TPUS for shape in shapes(chip)]


@given(which=st.sampled_from(SLICES), slices=st.integers(1, 9))
def test_a_tpu_topology_has_as_many_chips_as_its_sizes_say(which, slices):
    chip, shape = which
    topology = parse(f"{chip.name}:{'x'.join(map(str, shape))}", slices)
    assert topology.chips == math.prod(shape) <= chip.largest_slice
    assert topology.hosts == max(1, topology.chips / chip.chips_per_host)
    assert topology.devices == topology.domain * slices == topology.chips * slices * chip.devices_per_chip
    assert parse(f"{chip.name}:{topology.name}", slices) == topology


# How many slices xpk 1.16 lists for each TPU: of v4 in increasing order, of v5p those that fit 96 cubes.
@pytest.mark.parametrize("name, number", [("v4", 186), ("v5e", 8), ("v5p", 278), ("v6e", 8), ("tpu7x", 433)])
def test_there_are_as_many_slices_as_google_offers(name, number):
    assert len(shapes(CHIPS[name])) == len(set(shapes(CHIPS[name]))) == number


@pytest.mark.parametrize(
    "text, default",
    [("v5p:4x4x16", "4x8x8"), ("v5p:4x4x24", "4x8x12"), ("v5p:4x4x36", "4x12x12"), ("v5p:8x8x12", "8x8x12")],
)
def test_an_accelerator_type_alone_means_the_slice_that_is_nearest_to_a_cube(text, default):
    assert "x".join(map(str, parse(text).default_shape)) == default


@pytest.mark.parametrize(
    "text, hints",
    [
        ("v5e:2x6", ["v5e:2x4", "v5e:4x4"]),
        ("v6e:8x4", ["v6e:4x8"]),
        ("v5p:4x4x2", ["v5p:2x4x4"]),
        ("v5p:8x4x4", ["v5p:4x4x8"]),
        ("v4:6x6x6", ["v4:4x8x8", "v4:4x4x12"]),
        ("v4:1x1x1", ["v4:2x2x1"]),
    ],
)
def test_a_slice_that_nobody_offers_is_refused_with_those_near_it(text, hints):
    with pytest.raises(UserError) as error:
        parse(text)
    assert text in str(error.value)
    assert all(hint in str(error.value).partition("near it")[2] for hint in hints)


def test_the_names_of_generations_are_understood():
    assert parse("trillium:4x4") == parse("v6e:4x4")
    assert parse("ironwood:2x2x1").chip.name == "tpu7x"


@pytest.mark.parametrize("name", ["gb200", "a100", "h20", "v5"])
def test_another_chip_is_unknown_and_not_taken_for_one_of_the_table(name):
    with pytest.raises(UserError, match=f"no chip is called '{name}'; there are v4, v5e") as error:
        parse(f"{name}:8x8")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("slices", [0, -1, 1.5, True, "2", None])
def test_a_number_of_slices_that_is_none_is_refused(slices):
    with pytest.raises(UserError, match="1 or more"):
        parse("v5e:4x4", slices)


@pytest.mark.parametrize(
    "text, hosts, devices, accelerator",
    [
        ("v5e:4x4", 4, 16, "v5litepod-16"),
        ("v5p:4x4x4", 16, 64, "v5p-128"),
        ("v6e:16x16", 64, 256, "v6e-256"),
        ("v4:2x2x1", 1, 4, "v4-8"),
        ("tpu7x:2x2x1", 1, 8, "tpu7x-8"),
        ("v5e:1x1", 1, 1, "v5litepod-1"),
        ("h100:8x8", 8, 64, ""),
        ("h200:1x4", 1, 4, ""),
    ],
)
def test_hosts_devices_and_accelerator_type(text, hosts, devices, accelerator):
    topology = parse(text)
    assert (topology.hosts, topology.devices, topology.accelerator_type) == (hosts, devices, accelerator)


@pytest.mark.parametrize(
    "text, slices, message",
    [
        ("v5ee:4x4", 1, "there are v4, v5e"),
        ("v5e", 1, "write v5e:4x4"),
        ("v5e:4x4x4", 1, "2 directions"),
        ("v5p:4x4", 1, "3 directions"),
        ("v5e:3x4", 1, "near it are v5e:4x4, v5e:2x4"),
        ("v5e:32x16", 1, "--slices"),
        ("v5e:0x4", 1, "write v5e:4x4"),
        ("v5e:4x4", 0, "1 or more"),
        ("h100:2x4", 1, "8 GPUs"),
        ("h100:8x8", 2, "more hosts"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(text, slices, message):
    with pytest.raises(UserError, match=message):
        parse(text, slices)


@given(text=st.text(max_size=12))
def test_nothing_but_a_user_error_comes_out_of_any_text(text):
    try:
        parse(text)
    except UserError:
        pass


@given(
    name=st.sampled_from(sorted(PRESETS)),
    devices=st.integers(1, 512),
    groups=st.integers(1, 64),
    widths=st.sampled_from([0, 96, 1024, 1664, 7168]),
)
def test_a_preset_uses_every_device_and_splits_no_width_unevenly(name, devices, groups, widths):
    sizes = preset(name, devices, groups, widths)
    assert tuple(sizes) == AXES
    assert math.prod(sizes.values()) == devices * groups
    assert widths % sizes["fsdp"] == 0
    # The slow network between groups lies along one of the two: `make_mesh` wants it so of TPU slices.
    assert sizes["data"] % groups == 0 or sizes["fsdp"] % groups == 0


@pytest.mark.parametrize("slice_devices, copies", [(8, 1), (64, 1), (256, 4), (512, 8), (96, 3)])
def test_a_large_slice_holds_several_copies_of_the_state(slice_devices, copies):
    assert preset("hsdp", slice_devices, 2)["data"] == 2 * copies


def test_a_mistyped_preset_is_refused():
    with pytest.raises(UserError, match="did you mean hsdp"):
        preset("hsdq", 4, 1)


@pytest.mark.parametrize(
    "device_kind, chip",
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_a_device_is_found_in_the_table(device_kind, chip):
    assert chip_of(device_kind).name == chip


def test_no_chip_for_a_cpu():
    assert chip_of("cpu") is None
