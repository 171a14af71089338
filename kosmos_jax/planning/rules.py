"""How to run a model on a topology: mesh, microbatches and remat by arithmetic, then mended by the compiler's word."""

from dataclasses import replace

from kosmos_jax.errors import UserError
from kosmos_jax.model import abstract_model
from kosmos_jax.parallel.hardware import GIB
from kosmos_jax.parallel.topology import Topology
from kosmos_jax.planning.fit import Candidate, microbatch_counts
from kosmos_jax.planning.isolated import isolated_plan
from kosmos_jax.planning.plan import Plan, mesh_sizes
from kosmos_jax.planning.targets import examine_only

# Bytes of a parameter, with its gradient and Adam's two moments, all float32.
STATE_BYTES = 16
# Of a score in the output head, where its gradient is made: float32 twice, and the compute dtype.
SCORE_BYTES = 10
# What the state may take of a device's memory, and what rows may; the rest is for gathered weights, images, and what a
# layer needs while it runs.
STATE_SHARE, ROWS_SHARE = 0.4, 0.35


def rule(config, topology: Topology) -> Candidate:
    """The combination to try first.

    - One copy of the state in each group that the fast network joins, or several in a large one (hsdp), so that the
      slow one carries no weights; one copy in all (fsdp) where that comes to the same, or where 64 devices of a group
      do not hold one.
    - Remat "full": a row keeps its layers' inputs, 2 bytes x layers x tokens x width, and no more.
    - The fewest microbatches whose rows, with the scores of a chunk, take no more than their share of the memory.

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
    fitting = [count for count in counts if fits(count)]
    return Candidate(mesh, fitting[0] if fitting else counts[-1], "full")


def plan_by_rule(config, topology: Topology) -> Plan:
    """The plan of the rule's combination, with more microbatches where that helps: the compiler is asked.

    They make a step fit; and where reading memory is what takes longest, they can make it shorter, because smaller
    activations stay on a TPU's chip.

    Raises:
      UserError: it cannot be compiled, or see `rule`.
    """
    examine_only()
    first, best, tried = rule(config, topology), None, []
    for count in microbatch_counts(config, topology, first.mesh):
        if count < first.microbatches:
            continue
        try:
            plan = isolated_plan(config, topology, first.mesh, **first._replace(microbatches=count).changes)
        except UserError:
            if best is None:
                raise
            break
        tried.append(plan)
        if best and (not plan.fits or plan.roofline.seconds >= best.roofline.seconds):
            break
        if plan.fits:
            best = plan
        if not plan.state_fits or (best and best.roofline.binding != "HBM"):
            break
    best = best or tried[-1]
    return replace(best, notes=(*best.notes, *(_outcome(plan) for plan in tried if plan is not best)))


def _outcome(plan: Plan) -> str:
    """For the reader of a plan that was preferred to this one."""
    at_least = f"a step takes at least {plan.roofline.seconds:.3f} s" if plan.roofline else "the compiler refused"
    room = f"{plan.used / GIB:.1f} of {plan.limit / GIB:.1f} GiB"
    return f"tried as well: {plan.settings['microbatches']} microbatches, {room}, {at_least}"
