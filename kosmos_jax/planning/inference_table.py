"""The table of docs/inference_plans.md: what generation with each size of the model can do on each kind of hardware.

python -m kosmos_jax.planning.inference_table                       # resumes where it stopped
python -m kosmos_jax.planning.inference_table --size 7b --on v5e:2x4 # this cell alone
"""

import argparse
import json
import sys
from pathlib import Path

from kosmos_jax.config import load_config
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.hardware import GIB
from kosmos_jax.parallel.topology import Topology, parse
from kosmos_jax.planning.table import key

SIZES = ("1.6b", "7b", "30b")
HARDWARE = ("h100:1x1", "h100:1x8", "v5e:2x4", "v6e:2x4", "v5p:2x2x1")
COLUMNS = (
    "model", "hardware", "mesh", "KV of a token, KiB", "weights, GiB a device", "GiB a device", "slots",
    "a step at least, ms", "bound by", "tokens/s at most: all slots", "one slot", "prompt", "compiled in, s",
)  # fmt: skip


def markdown(cells: dict[str, dict]) -> str:
    """The table of all cells that were planned."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for size in SIZES:
        for text in HARDWARE:
            if cell := cells.get(key(size, parse(text))):
                lines.append(f"| {' | '.join(_row(size, cell))} |")
    return "\n".join(lines) + "\n"


def _row(size: str, cell: dict) -> list[str]:
    if "error" in cell:
        return [size, cell["topology"], cell["error"], *[""] * (len(COLUMNS) - 3)]
    mesh = " ".join(f"{axis}={n}" for axis, n in cell["mesh"].items() if n > 1) or "one device"
    used = f"{cell['used'] / GIB:.1f} of {cell['limit'] / GIB:.1f}" + ("" if cell["fits"] else ", does not fit")
    slots = ", ".join(f"{pool['length']} x {pool['slots']:,}" for pool in cell["pools"])
    speed = [""] * 5
    if cell["fits"]:
        times = [f"{1e3 * pool['seconds']:.1f}" for pool in cell["pools"]]
        bound = " ".join(dict.fromkeys(pool["binding"] for pool in cell["pools"]))
        tokens = [f"{cell['tokens_per_second'][name]:,.0f}" for name in ("all slots", "one slot", "prompt")]
        speed = [", ".join(times), bound, *tokens]
    seconds = sum(seconds for _, seconds in cell["programs"].values())
    token, weights = f"{cell['token_bytes'] / 1024:,.0f}", f"{cell['memory']['weights'] / GIB:.2f}"
    return [size, cell["topology"], mesh, token, weights, used, slots, *speed, f"{seconds:.0f}"]


def cell(size: str, topology: Topology) -> dict:
    """What the table and the tests keep of a plan, or the error."""
    from kosmos_jax.planning.devices import examine_only
    from kosmos_jax.planning.isolated import isolated_inference_plan

    examine_only()
    try:
        return isolated_inference_plan(load_config(f"configs/kosmos1_sizes.py:{size}"), topology).as_dict()
    except UserError as error:
        return {"topology": str(topology), "error": str(error)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--on", choices=HARDWARE, action="append")
    parser.add_argument("--out", default="docs/inference_plans.md", help="the .json beside it has more figures")
    args = parser.parse_args(argv)
    out = Path(args.out)
    store = out.with_suffix(".json")
    cells = json.loads(store.read_text()) if store.exists() else {}
    for size in args.size or SIZES:
        for text in args.on or HARDWARE:
            topology = parse(text)
            if args.size or args.on or key(size, topology) not in cells:
                cells[key(size, topology)] = cell(size, topology)
                store.write_text(json.dumps(cells, indent=1) + "\n")
    out.write_text(document(cells))
    return 0


def document(cells: dict[str, dict]) -> str:
    notes = {}
    for name, cell in cells.items():
        for note in cell.get("notes", ()):
            notes.setdefault(note, []).append(name)
    said = "".join(f"- {', '.join(names)}: {note}\n" for note, names in notes.items())
    return f"""# Plans for generation

What `kosmos plan --inference` says for sizes of configs/kosmos1_sizes.py in bfloat16: the real programs that read and
write, compiled for hardware that was not there. **Times and tokens a second are bounds from the makers' figures, not
measurements**, and hold no latency of a kernel or a collective.

Heads are split over all devices, and slots of 256, 768 and 2,048 tokens get the same bytes, as many as fit. A step
reads the weights and all keys and values of a pool once (those of empty entries too); the pools take turns. `one slot`
is a slot of 256 tokens with no other one there; `prompt` is read in pieces of 32 tokens, and each reads the decoder's
weights. v5p-8, Cloud TPU's name, has four chips.

Made by `python -m kosmos_jax.planning.inference_table`, which needs `kosmos_jax[plan]` and resumes where it stopped;
more figures are in inference_plans.json. The compiler's seconds, for the last number of slots tried, are of one of two
busy cores.

{markdown(cells)}
Notes of the planner:

{said}"""


if __name__ == "__main__":
    sys.exit(main())
