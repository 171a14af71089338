"""Compiler options for the chips of a mesh, as far as the installed compiler knows them."""

import logging
from functools import cache

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kosmos_jax.parallel.hardware import chip_of

log = logging.getLogger(__name__)


def compiler_options(mesh) -> dict[str, bool | int]:
    """The options of kosmos_jax.parallel.hardware for a mesh, for jax.jit; empty where there are none.

    One that the compiler does not know is left out with a warning: options come and go with its versions, and a run
    should not end for one of them.
    """
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    if chip is None:
        return {}
    slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat}) if chip.kind == "tpu" else 1
    wanted = chip.options(slices)
    if _accepts(device, tuple(wanted.items())):
        return wanted
    known = {name: value for name, value in wanted.items() if _accepts(device, ((name, value),))}
    log.warning("the compiler does not know %s; compiling without", ", ".join(sorted(set(wanted) - set(known))))
    return known


@cache
def _accepts(device, options: tuple[tuple[str, bool | int], ...]) -> bool:
    """Whether a program that does nothing compiles with these options."""
    sharding = NamedSharding(jax.sharding.Mesh([device], ("one",)), P())
    nothing = jax.jit(lambda: 0, out_shardings=sharding).lower()
    try:
        nothing.compile(compiler_options=dict(options))
    except Exception:  # noqa: BLE001  Each plug-in has its own.
        return False
    return True
