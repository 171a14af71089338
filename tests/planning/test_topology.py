"""Names of hardware and meshes: read, refused with a hint, and counted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.hardware import CHIPS, chip_of
from kosmos_jax.parallel.mesh import AXES, PRESETS, preset
from kosmos_jax.parallel.topology import parse

TPUS = [chip for chip in CHIPS.values() if chip.kind == "tpu"]


@given(chip=st.sampled_from(TPUS), halves=st.lists(st.integers(1, 8), min_size=3, max_size=3), slices=st.integers(1, 9))
def test_a_tpu_topology_has_as_many_chips_as_its_sizes_say(chip, halves, slices):
    shape = [2 * n for n in halves[: chip.dimensions]]
    topology = parse(f"{chip.name}:{'x'.join(map(str, shape))}", slices)
    assert topology.chips == math.prod(shape)
    assert topology.hosts * chip.chips_per_host == topology.chips
    assert topology.devices == topology.domain * slices == topology.chips * slices * chip.devices_per_chip
    assert parse(f"{chip.name}:{topology.name}", slices) == topology


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
        ("v5ee:4x4", 1, "did you mean v5e"),
        ("v5e", 1, "write v5e:4x4"),
        ("v5e:4x4x4", 1, "2 directions"),
        ("v5p:4x4", 1, "3 directions"),
        ("v5e:3x4", 1, "even"),
        ("v5e:32x16", 1, "--slices"),
        ("v5e:0x4", 1, "write v5e:4x4"),
        ("v5e:4x4", 0, "at least one"),
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
