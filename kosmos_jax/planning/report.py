"""A plan in words."""

from kosmos_jax.parallel.hardware import GIB
from kosmos_jax.planning.advice import advice
from kosmos_jax.planning.inference import InferencePlan
from kosmos_jax.planning.plan import Plan

KIB, TERA = 2**10, 1e12


def report(plan: Plan) -> str:
    """The plan as text for a terminal."""
    sections = [_head(plan), _memory(plan), _work(plan)]
    if plan.roofline:
        sections += [_traffic(plan), _roofline(plan)]
    sections.append([f"note: {note}" for note in plan.notes])
    sections.append([("fits" if plan.fits else "DOES NOT FIT"), *(f"  {line}" for line in advice(plan))])
    return "\n\n".join("\n".join(section) for section in sections if section)


def inference_report(plan: InferencePlan) -> str:
    """A plan for generation as text for a terminal."""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    eight = f", in eight bits {' and '.join(plan.int8)}" if plan.int8 else ""
    head = [
        f"{plan.topology}: {plan.chips} chips, mesh {mesh}",
        f"model {plan.model}{eight}, keys and values of a token {plan.token_bytes / KIB:,.0f} KiB",
        *(f"{name}: compiled in {s:.0f} s, temporaries {b / GIB:.2f} GiB" for name, (b, s) in plan.programs.items()),
    ]
    sections = [head, _memory(plan), _slots(plan)]
    if plan.piece:
        tokens = [f"  {name:16}{value:10,.0f}" for name, value in plan.tokens_per_second.items()]
        sections += [_traffic(plan), ["tokens/s at most (bounds from peak rates, not measurements)", *tokens]]
    sections.append([f"note: {note}" for note in plan.notes])
    sections.append(["fits" if plan.fits else "DOES NOT FIT" + ("" if plan.pools else ": more devices, or --int8")])
    return "\n\n".join("\n".join(section) for section in sections if section)


def _slots(plan: InferencePlan) -> list[str]:
    lines = [f"  {'tokens':>8}{'slots':>8}{'MiB each':>10}   a step at least, ms"]
    for pool in plan.pools:
        line = f"  {pool.length:8}{pool.slots:8,}{pool.slot_bytes / 2**20:10,.1f}"
        if pool.step:
            parts = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in pool.step.parts.items() if value)
            line += f"{1e3 * pool.step.seconds:10.2f}: {parts}"
        lines.append(line)
    return ["slots", *lines] if plan.pools else []


def _head(plan: Plan) -> list[str]:
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    settings = ", ".join(f"{key} {value}" for key, value in plan.settings.items())
    counts = ", ".join(f"{tower} {_millions(count)}" for tower, count in plan.parameters.items())
    return [
        f"{plan.topology}: {plan.chips} chips, mesh {mesh}",
        settings,
        f"parameters: {counts}",
        *([f"compiled in {plan.compile_seconds:.0f} s"] if plan.compile_seconds else []),
        *([f"kernels {', '.join(plan.kernels)}"] if plan.kernels else []),
    ]


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _memory(plan: Plan) -> list[str]:
    lines = ["memory of a device, GiB"]
    lines += [f"  {kind:16}{size / GIB:8.2f}" for kind, size in plan.memory.items()]
    room = 1 - plan.used / plan.limit
    room = f"{room:.0%} left" if room >= 0 else f"{-room:.0%} too much"
    return [*lines, f"  {'all':16}{plan.used / GIB:8.2f} of {plan.limit / GIB:.2f}, {room}"]


def _work(plan: Plan) -> list[str]:
    total = sum(plan.model_flops.values())
    lines = ["model TFLOP of a step, every place of the batch filled"]
    lines += [f"  {tower:16}{flops / TERA:12,.1f}" for tower, flops in plan.model_flops.items()]
    lines.append(f"  {'all':16}{total / TERA:12,.1f}")
    if plan.program_flops:
        times = plan.program_flops / total
        lines.append(f"  {'the program':16}{plan.program_flops / TERA:12,.1f}, {times:.2f} times as many")
    return lines


def _traffic(plan: Plan) -> list[str]:
    lines = ["collectives of a step, for a device" + ("" if plan.traffic else ": none")]
    for row in plan.traffic:
        how = "asynchronous" if row.asynchronous else "waits"
        lines.append(f"  {row.kind:20}{row.network:5}{row.count:8,.0f} x {row.bytes / GIB:9.3f} GiB in all  {how}")
    return lines


def _roofline(plan: Plan) -> list[str]:
    times = plan.roofline
    lines = ["a step takes at least, ms"]
    for name, seconds in times.parts.items():
        lines.append(f"  {name:16}{seconds * 1e3:10,.1f}" + ("  <- binding" if name == times.binding else ""))
    lines.append(f"  {'waiting':16}{times.waiting * 1e3:10,.1f}  of ICI and DCN, with no other work meanwhile")
    lines.append(f"  {'all':16}{times.seconds * 1e3:10,.1f}  MFU at most {plan.mfu:.1%} (a bound, not a measurement)")
    return lines
