"""The table of docs/plans.md: what each size of the model needs on each kind of hardware.

python -m kosmos_jax.planning.table                          # goes on where it stopped
python -m kosmos_jax.planning.table --size 0.4b --on v5e:4x4 # these cells alone
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from kosmos_jax.config import apply_overrides, load_config
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.hardware import GIB
from kosmos_jax.parallel.topology import Topology, parse

SIZES = ("0.4b", "1.6b", "7b", "30b")
HARDWARE = (
    ("v5e:4x4", 1),
    ("v5e:16x16", 1),
    ("v5e:16x16", 2),
    ("v5p:4x4x4", 1),
    ("v5p:8x8x8", 1),
    ("v6e:16x16", 1),
    ("h100-mega:1x8", 1),
    ("h100-mega:8x8", 1),
    ("h100-mega:32x8", 1),
    ("h200:1x8", 1),
)
PAPER_ROWS, PAPER_STEPS, DAY = 576, 300_000, 86_400
COLUMNS = (
    "model", "hardware", "mesh", "remat", "microbatches", "rows", "GiB a device", "a step takes at least, s",
    "bound by", "MFU at most", "300k steps at least, days", "chip-hours", "compiled in, s",
)  # fmt: skip


def rows_for(devices: int) -> int:
    """The multiple of `devices` that is nearest to the paper's rows: each device has as many."""
    return max(1, round(PAPER_ROWS / devices)) * devices


def key(size: str, topology: Topology) -> str:
    return f"{size} on {topology}"


def markdown(cells: dict[str, dict]) -> str:
    """The table of all cells that were planned, in the order of `SIZES` and `HARDWARE`."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for size in SIZES:
        for text, slices in HARDWARE:
            cell = cells.get(key(size, parse(text, slices)))
            if cell:
                lines.append(f"| {' | '.join(_row(size, cell))} |")
    return "\n".join(lines) + "\n"


def _row(size: str, cell: dict) -> list[str]:
    if "error" in cell:
        return [size, cell["topology"], cell["error"], *[""] * (len(COLUMNS) - 3)]
    settings, seconds = cell["settings"], cell.get("step_seconds_at_least")
    mesh = " ".join(f"{axis}={n}" for axis, n in cell["mesh"].items() if n > 1) or "one device"
    used = f"{cell['used'] / GIB:.1f} of {cell['limit'] / GIB:.1f}" + ("" if cell["fits"] else ", does not fit")
    speed = [""] * 5
    if seconds:
        days = seconds * PAPER_STEPS / DAY
        speed = [f"{seconds:.2f}", cell["binding"], f"{cell['mfu']:.0%}", f"{days:.1f}"]
        speed.append(f"{24 * days * cell['chips']:,.0f}")
    plain = [settings["remat"], str(settings["microbatches"]), str(settings["rows"])]
    return [size, cell["topology"], mesh, *plain, used, *speed, f"{cell['compile_seconds']:.0f}"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--on", action="append", metavar="TOPOLOGY", help="with its slices, as v5e:16x16*2")
    parser.add_argument("--out", default="docs/plans.md", help="the .json beside it keeps all figures")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    out = Path(args.out)
    store = out.with_suffix(".json")
    cells = json.loads(store.read_text()) if store.exists() else {}
    asked = bool(args.size or args.on)
    for size in args.size or SIZES:
        for text, slices in [_hardware(text) for text in args.on] if args.on else HARDWARE:
            topology = parse(text, slices)
            if asked or key(size, topology) not in cells:
                cells[key(size, topology)] = _cell(size, topology)
                store.write_text(json.dumps(cells, indent=1) + "\n")
                out.write_text(_document(cells))
    return 0


def _hardware(text: str) -> tuple[str, int]:
    name, _, slices = text.partition("*")
    return name, int(slices or 1)


def _cell(size: str, topology: Topology) -> dict:
    from kosmos_jax.planning.advice import advice
    from kosmos_jax.planning.rules import plan_by_rule

    config = load_config(f"configs/kosmos1_sizes.py:{size}")
    config = apply_overrides(config, [f"data.batch_rows={rows_for(topology.devices)}"])
    try:
        plan = plan_by_rule(config, topology)
        return plan.as_dict() | {"advice": advice(plan)}
    except UserError as error:
        return {"topology": str(topology), "error": str(error)}


def _document(cells: dict[str, dict]) -> str:
    return f"""# Plans

What `kosmos plan --mesh auto` says for sizes of configs/kosmos1_sizes.py: the real training step, compiled for hardware
that was not there. Times are projections from the makers' figures, and the least possible, not measurements; a run that
reaches two thirds of the MFU takes half as long again. Chip-hours are for the paper's 300,000 steps: times your price,
they are the cost. Rows are the paper's 576, taken to a multiple of the devices.

Made by `python -m kosmos_jax.planning.table`, which needs `kosmos_jax[tpu]` and `kosmos_jax[cuda]` and goes on where it
stopped; all figures are in plans.json. The compiler's seconds are of two busy cores.

{markdown(cells)}
What keeps the others from 60%, in the planner's words:

{_weak(cells)}"""


def _weak(cells: dict[str, dict]) -> str:
    return "".join(f"- {name}: {'; '.join(cell['advice'])}\n" for name, cell in cells.items() if cell.get("advice"))


if __name__ == "__main__":
    sys.exit(main())
