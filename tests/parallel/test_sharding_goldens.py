"""How each shipped config lies on each mesh preset, as text that a change of a rule has to change too.

After a change that is meant: python -m tests.parallel.test_sharding_goldens
"""

import math
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from kosmos_jax.config import load_config
from kosmos_jax.model import abstract_model
from kosmos_jax.parallel.mesh import AXES, PRESETS, preset
from kosmos_jax.parallel.sharding import parameter_specs

GOLDENS = Path(__file__).with_name("goldens")
CONFIGS = ["demo.py", "kosmos1.py", "kosmos2.py", *(f"kosmos1_sizes.py:{size}" for size in ("0.4b", "7b", "30b"))]
# Two groups of 16 devices.
DEVICES, GROUPS = 16, 2


def parts(spec, sizes) -> int:
    """How many ways an array is split."""
    axes = [axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
    return math.prod(sizes[axis] for axis in axes)


def layout(config: str, mesh: str):
    """(path, shape, PartitionSpec, bytes of a device) of every parameter."""
    model = load_config(f"configs/{config}", []).model
    _, shapes = abstract_model(model)
    sizes = preset(mesh, DEVICES, GROUPS)
    specs = parameter_specs(model, shapes, AbstractMesh(tuple(sizes.values()), AXES))
    return [
        (path, leaf.shape, specs[path], 4 * math.prod(leaf.shape) // parts(specs[path], sizes))
        for path, leaf in sorted(shapes.items())
    ]


def text(config: str) -> str:
    """All presets of a config: the complete layout for the first, and what differs from it for each other."""
    lines, first = [], {}
    for mesh in PRESETS:
        if mesh == "dp":
            continue
        rows = layout(config, mesh)
        sizes = " ".join(f"{axis}={size}" for axis, size in preset(mesh, DEVICES, GROUPS).items())
        lines.append(f"\n{mesh}: {sizes}; {sum(row[3] for row in rows):,} bytes a device")
        for path, shape, spec, held in rows:
            line = f"  {path} {list(shape)}: {', '.join(map(str, spec)) or 'replicated'}; {held:,}"
            if first.setdefault(path, line) != line or mesh == "fsdp":
                lines.append(line)
    return "\n".join(lines).lstrip() + "\n"


def golden(config: str) -> Path:
    return GOLDENS / (config.replace(".py", "").replace(":", "_") + ".txt")


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_lies_on_every_mesh_as_its_golden_says(config):
    assert text(config) == golden(config).read_text()


@pytest.mark.parametrize("config", CONFIGS[1:])
@pytest.mark.parametrize("mesh", [name for name in PRESETS if name != "dp"])
def test_no_more_than_two_percent_of_the_parameters_are_replicated(config, mesh):
    rows = layout(config, mesh)
    replicated = sum(math.prod(shape) for _, shape, _, held in rows if held == 4 * math.prod(shape))
    assert replicated <= 0.02 * sum(math.prod(shape) for _, shape, _, _ in rows)


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for name in CONFIGS:
        golden(name).write_text(text(name))
