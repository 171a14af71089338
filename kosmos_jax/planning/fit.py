"""`kosmos plan --fit`: the fastest of the ways to run a config on a topology that fit."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import PRESETS, preset
from kosmos_jax.parallel.topology import Topology
from kosmos_jax.planning.isolated import isolated_plan
from kosmos_jax.planning.plan import Plan

log = logging.getLogger(__name__)
# From what computes least again to what keeps least.
REMATS = ("none", "dots", "full")


class Candidate(NamedTuple):
    mesh: str
    microbatches: int
    remat: str

    @property
    def changes(self) -> dict:
        """Of the config, as `isolated_plan` takes them."""
        return dict(training__microbatches=self.microbatches, model__remat=self.remat)


def fit(config, topology: Topology, mesh_name: str | None = None) -> Plan:
    """Tries remat x microbatches x meshes.

    Of each mesh and remat the fewest microbatches that fit are the best: more of them gather the weights more often. So
    one climbs from few to many and stops at the first that fits; and what keeps more activations than a combination
    that did not fit is not tried.

    Args:
      mesh_name: try this preset alone.

    Returns:
      The plan with the least bound on the time of a step; if nothing fits, the one that needs least memory.

    Raises:
      UserError: nothing could be compiled at all.
    """
    best, smallest = None, None
    for name in [mesh_name] if mesh_name else meshes(topology):
        for remat in reversed(REMATS):
            plan = None
            for microbatches in microbatch_counts(config, topology, name):
                plan = _try(config, topology, Candidate(name, microbatches, remat))
                if plan is None:
                    continue
                if smallest is None or plan.used < smallest.used:
                    smallest = plan
                if plan.fits:
                    break
            if plan is None or not plan.fits:
                break
            if best is None or plan.roofline.seconds < best.roofline.seconds:
                best = plan
    if best is None and smallest is None:
        raise UserError(f"nothing could be compiled for {topology}; the lines above say why")
    return best or smallest


def meshes(topology: Topology) -> list[str]:
    """Presets, without those that come to the same here."""
    different = {tuple(preset(name, topology.domain, topology.domains).values()): name for name in reversed(PRESETS)}
    return [name for name in PRESETS if name in different.values()]


def microbatch_counts(config, topology: Topology, mesh_name: str) -> Iterator[int]:
    """Numbers of microbatches that divide the rows of each device, doubling at least from one to the next."""
    sizes = preset(mesh_name, topology.domain, topology.domains)
    rows, rest = divmod(config.data.batch_rows, sizes["data"] * sizes["fsdp"])
    last = 0
    for count in range(1, rows + 1) if rest == 0 else ():
        if rows % count == 0 and (count >= 2 * last or count == rows):
            last = count
            yield count


def _try(config, topology, candidate: Candidate) -> Plan | None:
    try:
        plan = isolated_plan(config, topology, candidate.mesh, **candidate.changes)
    except UserError as error:
        log.info("%s: %s", _words(candidate), error)
        return None
    share = f"{plan.used / plan.limit:.0%} of the memory"
    speed = f", a step takes at least {plan.roofline.seconds:.3f} s" if plan.roofline else ""
    log.info("%s: %s%s", _words(candidate), share, speed)
    return plan


def _words(candidate: Candidate) -> str:
    return f"mesh {candidate.mesh}, remat {candidate.remat}, {candidate.microbatches} microbatches"
