"""The table of docs/plans.md: what each size of the model needs on each kind of hardware.

python -m kosmos_jax.planning.table                          # resumes where it stopped
python -m kosmos_jax.planning.table --size 0.4b --on v5e:4x4 # these cells alone
python -m kosmos_jax.planning.table --price v5e=PRICE        # compiles nothing: what training costs on v5e
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from kosmos_jax.config import load_config
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.hardware import CHIPS, GIB
from kosmos_jax.parallel.topology import Topology, parse

SIZES = ("0.4b", "1.6b", "7b", "30b")
# Topologies and numbers of slices.
HARDWARE = (
    ("v5e:4x4", 1), ("v5e:16x16", 1), ("v5e:16x16", 2), ("v5p:4x4x4", 1), ("v5p:8x8x8", 1), ("v6e:16x16", 1),
    ("h100-mega:1x8", 1), ("h100-mega:8x8", 1), ("h100-mega:32x8", 1), ("h200:1x8", 1),
)  # fmt: skip
PAPER_ROWS, PAPER_STEPS, DAY = 576, 300_000, 86_400
# Of a plan, what the table shows and the tests compare.
KEPT = (
    *("topology", "chips", "mesh", "settings", "parameters", "used", "limit", "fits", "model_flops", "program_flops"),
    *("step_seconds_at_least", "binding", "mfu", "compile_seconds", "notes", "advice"),
)
COLUMNS = (
    "model", "hardware", "mesh", "remat", "microbatches", "rows", "GiB a device", "a step takes at least, s",
    "bound by", "MFU at most", "300k steps at least, days", "chip-hours", "compiled in, s",
)  # fmt: skip


def rows_for(devices: int) -> int:
    """The multiple of `devices` that is nearest to the paper's rows: each device has as many."""
    return max(1, round(PAPER_ROWS / devices)) * devices


def key(size: str, topology: Topology) -> str:
    return f"{size} on {topology}"


def costs(cells: dict[str, dict], prices: dict[str, float]) -> str:
    """Training's least time and cost as text, of the cells whose chip has a price (its name -> price of an hour)."""
    titles = f"{'model':8}{'hardware':20}{'days':>8}{'chip-hours':>12}{'cost':>14}"
    lines = [f"at least, for {PAPER_STEPS:,} steps:", titles]
    for size, topology in _cells():
        cell = cells.get(key(size, topology), {})
        if cell.get("fits") and topology.chip.name in prices:
            days, hours = _days_and_chip_hours(cell)
            cost = hours * prices[topology.chip.name]
            lines.append(f"{size:8}{topology!s:20}{days:8.1f}{hours:12,.0f}{cost:14,.0f}")
    return "\n".join(lines)


def _days_and_chip_hours(cell: dict) -> tuple[float, float]:
    """At least, for all steps."""
    days = cell["step_seconds_at_least"] * PAPER_STEPS / DAY
    return days, 24 * days * cell["chips"]


def _cells(sizes=SIZES, hardware=HARDWARE) -> list[tuple[str, Topology]]:
    return [(size, parse(text, slices)) for size in sizes for text, slices in hardware]


def markdown(cells: dict[str, dict]) -> str:
    """The table of all cells that were planned, in the order of `SIZES` and `HARDWARE`."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for size, topology in _cells():
        if cell := cells.get(key(size, topology)):
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
        days, hours = _days_and_chip_hours(cell)
        speed = [f"{seconds:.2f}", cell["binding"], f"{cell['mfu']:.0%}", f"{days:.1f}", f"{hours:,.0f}"]
    plain = [settings["remat"], str(settings["microbatches"]), str(settings["rows"])]
    return [size, cell["topology"], mesh, *plain, used, *speed, f"{cell['compile_seconds']:.0f}"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--on", action="append", metavar="TOPOLOGY", help="with its slices, as v5e:16x16*2")
    parser.add_argument("--price", action="append", metavar="CHIP=PRICE", help="of a chip for an hour")
    parser.add_argument("--out", default="docs/plans.md", help="the .json beside it has more figures")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    out = Path(args.out)
    store = out.with_suffix(".json")
    cells = json.loads(store.read_text()) if store.exists() else {}
    if args.price:
        print(costs(cells, dict(_price(text) for text in args.price)))
        return 0
    asked = bool(args.size or args.on)
    named = [text.partition("*") for text in args.on or ()]
    hardware = [(text, int(slices or 1)) for text, _, slices in named] or HARDWARE
    for size, topology in _cells(args.size or SIZES, hardware):
        if asked or key(size, topology) not in cells:
            cells[key(size, topology)] = _cell(size, topology)
            store.write_text(json.dumps(cells, indent=1) + "\n")
            out.write_text(_document(cells))
    return 0


def _price(text: str) -> tuple[str, float]:
    chip, _, price = text.partition("=")
    try:
        return CHIPS[chip].name, float(price)
    except (KeyError, ValueError):
        raise SystemExit(f"--price {text}: write CHIP=PRICE, with a chip of {', '.join(CHIPS)}") from None


def config_for(size: str, topology: Topology):
    """The config of a cell."""
    return load_config(f"configs/kosmos1_sizes.py:{size}", [f"data.batch_rows={rows_for(topology.devices)}"])


def _cell(size: str, topology: Topology) -> dict:
    from kosmos_jax.planning.advice import advice
    from kosmos_jax.planning.devices import examine_only
    from kosmos_jax.planning.search import plan_by_rule

    examine_only()
    try:
        plan = plan_by_rule(config_for(size, topology), topology)
        figures = plan.as_dict() | {"advice": advice(plan)}
        return {name: figures[name] for name in KEPT if name in figures}
    except UserError as error:
        return {"topology": str(topology), "error": str(error)}


def _document(cells: dict[str, dict]) -> str:
    return f"""# Plans

What `kosmos plan --mesh auto` says for sizes of configs/kosmos1_sizes.py: the real training step, compiled for hardware
that was not there. Times are projections from the makers' figures, and the least possible, not measurements; a run that
reaches two thirds of the MFU takes half as long again. Days and chip-hours are for the paper's 300,000 steps; with what
a chip costs you in an hour, the cost of each line is

    python -m kosmos_jax.planning.table --price v5e=PRICE --price h100-mega=PRICE

Rows are the paper's 576, taken to a multiple of the devices.

Made by `python -m kosmos_jax.planning.table`, which needs `kosmos_jax[plan]` and resumes where it stopped; more figures
are in plans.json. The compiler's seconds are of one of two busy cores.

{markdown(cells)}
What keeps the others from 60%, in the planner's words:

{_weak(cells)}"""


def _weak(cells: dict[str, dict]) -> str:
    weak = {name: cell for name, cell in cells.items() if cell.get("advice")}
    return "".join(f"- {name}: {'; '.join([*cell['advice'], *cell['notes']])}\n" for name, cell in weak.items())


if __name__ == "__main__":
    sys.exit(main())
