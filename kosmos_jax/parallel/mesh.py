"""The device mesh: four named axes, sizes by config."""

import difflib
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from kosmos_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")
# The axes that split the rows of a batch.
ROWS = ("data", "fsdp")


def _four(devices: int) -> int:
    """The ways in which presets split layers or sequences: 4, or 2 or 1 where 4 does not divide."""
    return math.gcd(devices, 4)


def _copies(devices: int) -> int:
    """Copies of the state in a group: in one of more than 64 devices each lies on the largest power of 2 up to 64.

    XLA for TPU (libtpu 0.0.42) sums gradients over an entire slice by all-reduce, and over a part of it by the
    reduce-scatter that is wanted, which sends half as much. On 64 devices a model of 30B has 6 GiB of state each.
    """
    return devices // math.gcd(devices, 64) if devices > 64 else 1


# Meshes by name: (n devices joined by the fast network, s such groups) -> sizes of `AXES`. A group is a TPU slice or a
# host of GPUs. "fsdp" keeps one copy of the state in all, "hsdp" one in each group (more in a large one), so that the
# slow network carries no weights; "_tp" splits layers too, "_cp" sequences, both inside a group.
PRESETS: dict[str, Callable[[int, int], tuple[int, int, int, int]]] = {
    "dp": lambda n, s: (n * s, 1, 1, 1),
    "fsdp": lambda n, s: (1, n * s, 1, 1),
    "hsdp": lambda n, s: (s * _copies(n), n // _copies(n), 1, 1),
    "fsdp_tp": lambda n, s: (1, n * s // _four(n), _four(n), 1),
    "hsdp_tp": lambda n, s: (s, n // _four(n), _four(n), 1),
    "fsdp_cp": lambda n, s: (1, n * s // _four(n), 1, _four(n)),
    "hsdp_cp": lambda n, s: (s, n // _four(n), 1, _four(n)),
}


def preset(name: str, devices: int, groups: int, widths: int = 0) -> dict[str, int]:
    """The sizes of a preset, as `config.mesh` holds them.

    Args:
      name: one of `PRESETS`.
      devices: of each group that the fast network joins: a TPU slice, a host of GPUs.
      groups: how many there are.
      widths: what divides all widths that `fsdp` splits; where it does not split them so often, there are more copies
        of the state, and each device holds a part of everything. 0: split as often as the preset says.

    Raises:
      UserError: there is no such preset.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(PRESETS)}"
        raise UserError(f"no mesh is called {name!r}{hint}")
    data, fsdp, tensor, context = PRESETS[name](devices, groups)
    kept = math.gcd(fsdp, widths)
    if kept % groups and data * fsdp // kept % groups:  # complete groups have to lie along one axis
        kept = math.gcd(fsdp // groups, widths)
    return dict(zip(AXES, (data * fsdp // kept, kept, tensor, context), strict=True))


def axis_sizes(config, device_count: int) -> tuple[int, ...]:
    """Sizes of `AXES` for `config.mesh`, with the one -1 (if any) filled in from the number of devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [config[axis] for axis in AXES]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {asked}: sizes are positive, and at most one is -1 (all that is left)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and device_count % known == 0:
        sizes[sizes.index(-1)] = device_count // known
    if math.prod(sizes) != device_count:
        raise UserError(
            f"mesh {asked} does not fit {device_count} devices; set --config.mesh.fsdp=-1 and let the other sizes "
            "divide the number of devices"
        )
    return tuple(sizes)


def make_mesh(config, devices=None) -> jax.sharding.Mesh:
    """The mesh of `config.mesh` over all devices, or over those given.

    Neighbours in the mesh are neighbours in the torus of a TPU slice. Slices, which the slow network of the data center
    joins, stand along `data`, or along `fsdp` where they do not divide `data`. GPUs keep JAX's order, host after host,
    so the axes named last stay inside a host.

    Axis types are Auto: the compiler propagates shardings from parameters, batch and the few constraints in the model.

    Raises:
      UserError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = axis_sizes(config, len(devices))
    if devices[0].platform == "tpu":
        over_slices = _over_slices(sizes, len({getattr(device, "slice_index", 0) for device in devices}))
        inside = tuple(size // slices for size, slices in zip(sizes, over_slices, strict=True))
        if math.prod(over_slices) > 1:
            grid = mesh_utils.create_hybrid_device_mesh(inside, over_slices, devices, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(sizes)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _over_slices(sizes: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """How many ways each of `AXES` is split by slices."""
    for axis in ("data", "fsdp"):
        if sizes[AXES.index(axis)] % slices == 0:
            return tuple(slices if name == axis else 1 for name in AXES)
    raise UserError(
        f"mesh {dict(zip(AXES, sizes, strict=True))}: {slices} slices have to divide mesh.data, or else mesh.fsdp; set "
        f"--config.mesh.data={slices}"
    )


def row_shards(mesh) -> int:
    """How many ways the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)
