"""`kosmos plan --fit`: the fastest of the ways to run a config on a topology that fit."""

import logging
from typing import NamedTuple

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import PRESETS
from kosmos_jax.parallel.topology import Topology
from kosmos_jax.planning.isolated import isolated_plan
from kosmos_jax.planning.plan import Plan, mesh_sizes

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

    Of each mesh and remat the fewest microbatches that fit are taken, because more of them gather the weights more
    often: one climbs from few to many and stops at the first that fits. (Where reading memory binds, more can still be
    better; `plan_by_rule` goes on.) What keeps more activations than a combination that did not fit is not tried.

    Args:
      mesh_name: try this preset alone.

    Returns:
      The plan with the least bound on the time of a step; if nothing fits, the one that needs least memory.

    Raises:
      UserError: nothing could be compiled at all.
    """
    best, smallest = None, None
    for name in [mesh_name] if mesh_name else meshes(config, topology):
        try:
            counts = microbatch_counts(config, topology, name)
        except UserError as error:
            if mesh_name:
                raise
            log.info("mesh %s: %s", name, error)
            continue
        for remat in reversed(REMATS):
            plan = None
            for microbatches in counts:
                plan = _try(config, topology, Candidate(name, microbatches, remat))
                if plan is None:
                    continue
                # One that was not compiled counts its state alone.
                if smallest is None or (not plan.state_fits, plan.used) < (not smallest.state_fits, smallest.used):
                    smallest = plan
                if plan.fits or not plan.state_fits:
                    break
            if plan is None or not plan.fits:
                break
            if best is None or plan.roofline.seconds < best.roofline.seconds:
                best = plan
    if best is None and smallest is None:
        raise UserError(f"nothing could be compiled for {topology}; the lines above say why")
    return best or smallest


def meshes(config, topology: Topology) -> list[str]:
    """Presets, without those that come to the same here."""
    different = {tuple(mesh_sizes(config, topology, name).values()): name for name in reversed(PRESETS)}
    return [name for name in PRESETS if name in different.values()]


def microbatch_counts(config, topology: Topology, mesh_name: str) -> list[int]:
    """Numbers of microbatches that divide the rows of each device, doubling at least from one to the next.

    Raises:
      UserError: the rows of a step do not divide over the devices.
    """
    sizes = mesh_sizes(config, topology, mesh_name)
    devices = sizes["data"] * sizes["fsdp"]
    rows, rest = divmod(config.data.batch_rows, devices)
    if rest:
        near = " or ".join(str(count * devices) for count in (rows, rows + 1) if count)
        raise UserError(
            f"data.batch_rows={config.data.batch_rows} does not divide over the {devices} ways in which mesh "
            f"{mesh_name} splits rows on {topology}; try {near}"
        )
    counts = []
    for count in range(1, rows + 1):
        if rows % count == 0 and (not counts or count >= 2 * counts[-1] or count == rows):
            counts.append(count)
    return counts


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
