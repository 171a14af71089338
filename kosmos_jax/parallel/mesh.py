"""The device mesh: four named axes, sizes by config."""

import math

import jax
from jax.sharding import AxisType

from kosmos_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")
# The axes that split the rows of a batch.
ROWS = ("data", "fsdp")


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

    Axis types are Auto: the compiler propagates shardings from parameters, batch and the few constraints in the model.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def row_shards(mesh) -> int:
    """How many ways the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)
