"""Plans made in a process of their own: a compiler that crashes or takes too much memory takes only that one along."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from kosmos_jax.config import from_json, to_json
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.topology import Topology, parse


def isolated_plan(config, topology: Topology, mesh_name: str | None = None, **changes):
    """`make_plan` of a `prepared` config.

    Raises:
      UserError: as `make_plan`; or the compiler crashed.
    """
    name = f"{topology.chip.name}:{topology.name}"
    # Spawned: libtpu does not survive a fork.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_plan, to_json(config), name, topology.slices, mesh_name, changes).result()
        except BrokenProcessPool:
            raise UserError(
                f"the compiler for {topology} crashed, or the machine ran out of memory (dmesg tells). This is not "
                "about the config's size on the chip; other values of training.microbatches, or another mesh, may pass"
            ) from None


def _plan(config_json: str, topology: str, slices: int, mesh_name: str | None, changes: dict):
    from kosmos_jax.planning.targets import examine_only

    examine_only()
    from kosmos_jax.planning.plan import make_plan, prepared

    parsed = parse(topology, slices)
    return make_plan(prepared(from_json(config_json), parsed, mesh_name, **changes), parsed)
