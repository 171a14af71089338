"""What to change when a plan does not fit, or fits and is slow."""

from kosmos_jax.parallel.hardware import GIB
from kosmos_jax.planning.plan import Plan

# Less than this triggers advice: what the plans in docs/plans.md reach for models of 1.6B and more.
GOOD_MFU = 0.6


def advice(plan: Plan) -> list[str]:
    """Lines for the reader, the most promising first."""
    if not plan.state_fits:
        return _more_devices(plan)
    if not plan.fits:
        return [*_smaller(plan), "or let --fit look for what fits"]
    return _faster(plan) if plan.mfu < GOOD_MFU else []


def _state(plan: Plan) -> int:
    """Bytes of it on one device."""
    return sum(plan.memory.get(kind, 0) for kind in ("parameters", "optimizer", "average", "padding"))


def _more_devices(plan: Plan) -> list[str]:
    if _state(plan) <= plan.limit:
        return ["the batches that wait take the rest of the memory: fewer rows, --config.data.batch_rows"]
    copy = _state(plan) * plan.mesh["fsdp"] * plan.mesh["tensor"]
    lines = [
        f"one copy of parameters and optimizer is {copy / GIB:.0f} GiB: it takes more than {copy // plan.limit} "
        "devices, each with a part of it"
    ]
    return lines + ([f"fewer copies of it than mesh.data={plan.mesh['data']}"] if plan.mesh["data"] > 1 else [])


def _smaller(plan: Plan) -> list[str]:
    """Each names what takes the memory and the option that shrinks it."""
    held, lines, state = plan.memory, [], _state(plan)
    if state > plan.limit / 2:
        copies = plan.mesh["data"]
        lines.append(
            "most of it is parameters and optimizer: more chips"
            + (f", or fewer copies of them than mesh.data={copies}" if copies > 1 else "")
        )
    if plan.settings["remat"] != "full":
        lines.append("keep fewer activations: --config.model.remat=full")
    more = _next_microbatches(plan)
    if more:
        lines.append(f"smaller parts of the batch at a time: --config.training.microbatches={more}")
    elif held["temporaries"] > plan.limit / 2:
        lines.append("a device holds one row at a time already: split rows or layers, --mesh fsdp_cp or fsdp_tp")
    return lines


def _next_microbatches(plan: Plan) -> int | None:
    """The next larger number of microbatches that divides the rows of every device."""
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    rows, now = plan.settings["rows"] // shards, plan.settings["microbatches"]
    return next((n for n in range(now + 1, rows + 1) if rows % n == 0), None)


def _faster(plan: Plan) -> list[str]:
    times, lines = plan.roofline, []
    total = sum(plan.model_flops.values())
    if times.waiting > 0.1 * times.seconds:
        lines.append(f"{times.waiting / times.seconds:.0%} of a step waits for collectives that nothing overlaps")
    if plan.program_flops > 1.5 * total:
        lines.append(
            f"the program computes {plan.program_flops / total:.1f} times the model's FLOPs: remat adds a third; more "
            "than that is work that devices do in common"
        )
    hints = {
        "HBM": "reading memory is the limit: more rows a step, or other microbatches (--mesh auto tries some)"
        + ("" if plan.kernels else ", or an attention kernel, which does not write its scores"),
        "ICI": "the fast network is the limit: fewer microbatches (each gathers the weights again), or more rows",
        "DCN": "the slow network is the limit: more rows a step"
        + (", or --mesh hsdp, which sends no weights over it" if plan.mesh["data"] == 1 else ""),
    }
    return lines + ([hints[times.binding]] if times.binding in hints else [])
