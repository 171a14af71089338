"""Which mesh, remat and microbatches run a config on a topology: by a rule of thumb, or the fastest of all that fit.

Both climb from few microbatches to many and ask the compiler at each step (`climb`). The rule chooses one mesh and one
remat by arithmetic and climbs once; `fit` climbs for every mesh and remat.
"""

import logging
from dataclasses import replace
from typing import NamedTuple

from kosmos_jax.errors import UserError
from kosmos_jax.model import abstract_model
from kosmos_jax.parallel.hardware import GIB
from kosmos_jax.parallel.mesh import PRESETS
from kosmos_jax.parallel.topology import Topology
from kosmos_jax.planning.isolated import isolated_plan
from kosmos_jax.planning.plan import Plan, mesh_sizes

log = logging.getLogger(__name__)
# From what keeps least to what computes least again.
REMATS = ("full", "dots", "none")
# Bytes of a parameter, with its gradient and Adam's two moments, all float32.
STATE_BYTES = 16
# Of a score in the output head, where its gradient is made: float32 twice, and the compute dtype.
SCORE_BYTES = 10
# What the state may take of a device's memory, and what rows may; the rest is for gathered weights, items, and what a
# layer needs while it runs.
STATE_SHARE, ROWS_SHARE = 0.4, 0.35


class Climb(NamedTuple):
    """Plans to ask for in turn: one mesh, one remat, more and more microbatches."""

    mesh: str
    remat: str
    microbatches: list[int]


def plan_by_rule(config, topology: Topology) -> Plan:
    """The best plan of the climb that `rule` chooses; its notes say what else was tried.

    Raises:
      UserError: it cannot be compiled, or see `rule`.
    """
    tried = climb(config, topology, rule(config, topology))
    best = _best(tried)
    others = [(plan.settings["microbatches"], _outcome(plan)) for plan in tried if plan is not best]
    notes = [f"tried as well: {count} microbatches, {outcome}" for count, outcome in others]
    return replace(best, notes=(*best.notes, *notes))


def fit(config, topology: Topology, mesh_name: str | None = None) -> Plan:
    """The best plan of all meshes and remats; what keeps more than a remat that did not fit is not tried.

    Args:
      config: as loaded.
      topology: the hardware.
      mesh_name: try this preset alone.

    Raises:
      UserError: nothing could be compiled at all.
    """
    tried, last = [], None
    for name in [mesh_name] if mesh_name else meshes(config, topology):
        try:
            counts = microbatch_counts(config, topology, name)
            for remat in REMATS:
                found = climb(config, topology, Climb(name, remat, counts))
                tried += found
                if not _best(found).fits:
                    break
        except UserError as error:
            if mesh_name and not tried:
                raise
            log.info("mesh %s: %s", name, last := error)
    if not tried:
        raise UserError(f"nothing could be compiled for {topology}: {last}")
    return _best(tried)


def climb(config, topology: Topology, wanted: Climb) -> list[Plan]:
    """Plans with more and more microbatches, as long as more can help.

    They make a step fit. Where it fits they gather the weights more often and only help while reading memory is what
    takes longest, because smaller activations stay on a TPU's chip.

    Args:
      config: the complete config.
      topology: the hardware.
      wanted: mesh, remat and numbers of microbatches.

    Raises:
      UserError: none of them could be compiled.
    """
    tried, best, last = [], None, None
    for count in wanted.microbatches:
        words = f"mesh {wanted.mesh}, remat {wanted.remat}, {count} microbatches"
        changes = dict(training__microbatches=count, model__remat=wanted.remat)
        try:
            plan = isolated_plan(config, topology, wanted.mesh, **changes)
        except UserError as error:
            log.info("%s: %s", words, error)
            if best:
                break
            last = error
            continue
        log.info("%s: %s", words, _outcome(plan))
        tried.append(plan)
        if best and _best([best, plan]) is best:
            break
        best = plan if plan.fits else best
        if not plan.state_fits or (best and best.roofline.binding != "HBM"):
            break
    if not tried:
        raise last
    return tried


def _best(plans: list[Plan]) -> Plan:
    """The fastest of those that fit; if none does, the one that needs least memory, its state fitting before all."""
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: plan.roofline.seconds)
    return min(reversed(plans), key=lambda plan: (not plan.state_fits, plan.used))


def _outcome(plan: Plan) -> str:
    at_least = f"a step takes at least {plan.roofline.seconds:.3f} s" if plan.roofline else "the compiler refused"
    room = f"{plan.used / GIB:.1f} of {plan.limit / GIB:.1f} GiB"
    return f"{room}, {at_least}"


def rule(config, topology: Topology) -> Climb:
    """What to try first.

    - One copy of the state in each group that the fast network joins, or several in a large one (hsdp), so that the
      slow one carries no weights; one copy in all (fsdp) where that comes to the same, or where 64 devices of a group
      do not hold one.
    - Remat "full": a row keeps its layers' inputs, 2 bytes x layers x tokens x width, and no more.
    - From the fewest microbatches whose rows, with the scores of a chunk, take no more than their share of the memory.

    Raises:
      UserError: the rows of a step do not divide over the devices.
    """
    usable = topology.chip.usable_hbm / topology.chip.devices_per_chip
    state = STATE_BYTES * sum(leaf.size for leaf in abstract_model(config.model)[1].values())
    copies = mesh_sizes(config, topology, "hsdp")
    mesh = "hsdp" if copies["data"] > 1 and state / copies["fsdp"] < STATE_SHARE * usable else "fsdp"
    sizes, text = mesh_sizes(config, topology, mesh), config.model.text
    rows = config.data.batch_rows // (sizes["data"] * sizes["fsdp"])
    row_bytes = 2 * text.layers * text.width * config.data.seq_len

    def fits(count):
        tokens = rows // count * config.data.seq_len
        scored = min(config.training.loss_chunk or tokens, tokens)
        return rows // count * row_bytes + SCORE_BYTES * scored * text.vocab_size <= ROWS_SHARE * usable

    counts = microbatch_counts(config, topology, mesh)
    return Climb(mesh, "full", [count for count in counts if fits(count)] or counts[-1:])


def meshes(config, topology: Topology) -> list[str]:
    """Presets, without those that come to the same here."""
    different = {tuple(mesh_sizes(config, topology, name).values()): name for name in reversed(PRESETS)}
    return [name for name in PRESETS if name in different.values()]


def microbatch_counts(config, topology: Topology, mesh_name: str) -> list[int]:
    """Numbers of microbatches that divide the rows of each device, doubling at least from one to the next.

    Args:
      config: the complete config.
      topology: the hardware.
      mesh_name: a preset.

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
