"""Reads the text of a compiled XLA program: computations, their instructions, and how often each runs in a step.

XLA's own cost analysis counts a loop's body once. Here everything is multiplied by the trip counts of the loops around
it, which are what a scan over layers is made of.
"""

import collections
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# Bytes of an element; types with fewer than eight bits are of no account here.
ITEM = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
# A kernel's configuration has lines that only start with a brace.
_END = re.compile(r"\}(, execution_thread=.*)?$")
_NAME = re.compile(r"^\s+(ROOT )?%?(\S+) = ")
_OPCODE = re.compile(r"([\w-]+)\(")
_CALLED = re.compile(r"(\w+)=%([^\s,){}]+)|(branch_computations|called_computations)=\{([^}]*)\}")


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result; `space` is 0 for the main memory, on TPU 1 and more for what is on chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.elements * ITEM.get(self.dtype, 0)


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line of the program.

    Attributes:
      arrays: of the result; several where it is a tuple.
      operands: names of instructions in the same computation; of a parameter or constant, what stands in the brackets.
      attributes: all that comes after the operands, as it stands.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @cached_property
    def called(self) -> dict[str, list[str]]:
        """Names of the computations that it runs, by role: "body", "condition", "calls", "to_apply", ..."""
        found = collections.defaultdict(list)
        for role, one, many_role, many in _CALLED.findall(self.attributes):
            found[role or many_role] += [one] if role else re.findall(r"%([^\s,]+)", many)
        return found


@dataclass(frozen=True, eq=False)
class Program:
    """A module: its computations by name, each a dictionary of instructions in order of execution."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    @cached_property
    def runs(self) -> dict[str, float]:
        """How often each computation that stands for control flow runs in one call of the program.

        Fused computations are not here: they belong to the instruction that calls them.
        """
        runs = collections.Counter()
        self._visit(self.entry, 1.0, runs)
        return dict(runs)

    @cached_property
    def unknown_loops(self) -> list[str]:
        """Names of the loops whose trip count the text does not tell; they count once."""
        loops = ((i, inside) for _, inside, i in self.instructions() if i.opcode == "while")
        return sorted(loop.name for loop, inside in loops if self.trip_count(loop, inside) is None)

    def instructions(self) -> Iterator[tuple[float, str, Instruction]]:
        """All that runs in a step, fused computations aside: how often, in which computation, the instruction."""
        for name, times in self.runs.items():
            for instruction in self.computations[name].values():
                yield times, name, instruction

    def fused(self, fusion: Instruction) -> dict[str, Instruction]:
        """The computation that a fusion runs."""
        return self.computations[fusion.called["calls"][0]]

    def _visit(self, name: str, times: float, runs) -> None:
        runs[name] += times
        for instruction in self.computations[name].values():
            called = instruction.called
            if instruction.opcode == "while":
                trips = self.trip_count(instruction, name)
                self._visit(called["body"][0], times * (1 if trips is None else trips), runs)
            elif instruction.opcode == "conditional":
                branches = called["branch_computations"] or called["true_computation"] + called["false_computation"]
                for branch in branches:  # each as if it were taken: what is rare in them is cheap
                    self._visit(branch, times, runs)
            elif instruction.opcode in ("call", "async-start"):
                for callee in called["to_apply"] + called["calls"]:
                    self._visit(callee, times, runs)

    def trip_count(self, loop: Instruction, inside: str) -> int | None:
        """How often a loop turns: XLA's own note, or else the constant that its counter is compared with."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self._with_fused(loop.called["condition"][0])
        compares = [i for i in condition.values() if i.opcode == "compare" and "direction=LT" in i.attributes]
        constants = [i.name for i in condition.values() if i.opcode == "constant" and not i.arrays[0].dims]
        limits = [value for name in constants if (value := _constant(name, condition)) is not None]
        if len(compares) != 1 or len(limits) != 1:
            return None
        place = _counter_place(condition)
        first, step = self._first_value(loop, place, inside), self._step(loop, place)
        return max(0, -((first - limits[0]) // step))

    def _with_fused(self, name: str) -> dict[str, Instruction]:
        found = dict(self.computations[name])
        for instruction in self.computations[name].values():
            for callee in instruction.called["calls"]:
                found |= self.computations[callee]
        return found

    def _first_value(self, loop: Instruction, place: int | None, inside: str) -> int:
        """Where the counter starts; 0 unless a constant says otherwise."""
        around = self.computations[inside]
        start = around.get(loop.operands[0])
        if place is None or start is None or start.opcode != "tuple":
            return 0
        value = _constant(start.operands[place], around)
        return 0 if value is None else value

    def _step(self, loop: Instruction, place: int | None) -> int:
        """What a turn adds to the counter: 1, or 2 where the compiler does two turns in one."""
        body = self.computations[loop.called["body"][0]]
        root = root_of(body)
        if place is None or root.opcode != "tuple":
            return 1
        added = body[root.operands[place]]
        while added.opcode in ("copy", "bitcast"):
            added = body[added.operands[0]]
        around = body
        if added.opcode == "fusion":
            around = self.fused(added)
            outer, added = added, root_of(around)
            # What the fusion is given may be the constant.
            around = around | {
                i.name: body[outer.operands[int(i.operands[0])]] for i in around.values() if i.opcode == "parameter"
            }
        if added.opcode != "add":
            return 1
        steps = [value for name in added.operands if (value := _constant(name, around)) is not None]
        return steps[0] if len(steps) == 1 and steps[0] > 0 else 1


def root_of(computation: dict[str, Instruction]) -> Instruction:
    """What a computation results in."""
    return next(i for i in computation.values() if i.root)


def _constant(name: str, computation: dict[str, Instruction]) -> int | None:
    """The integer that an instruction is, through copies; None if it is no constant."""
    value = computation.get(name)
    while value is not None and value.opcode in ("copy", "bitcast"):
        value = computation.get(value.operands[0])
    known = value is not None and value.opcode == "constant" and re.fullmatch(r"-?\d+", value.operands[0])
    return int(value.operands[0]) if known else None


def _counter_place(condition: dict[str, Instruction]) -> int | None:
    """Where in the loop's tuple the number is that the condition reads; None unless there is just one."""
    counters = (i for i in condition.values() if i.opcode == "get-tuple-element" and i.arrays[0].dims == ())
    places = {re.search(r"index=(\d+)", i.attributes)[1] for i in counters}
    return int(places.pop()) if len(places) == 1 else None


def parse(text: str) -> Program:
    """The program from `compiled.as_text()`."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
        elif _END.match(line):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    name = _NAME.match(line)
    if not name:
        return None
    rest = line[name.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end + 1)
    if not opcode:
        return None
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    plain = opcode[1] in ("parameter", "constant")
    operands = (inside,) if plain else tuple(re.findall(r"%([^\s,()]+)", inside))
    return Instruction(name[2], opcode[1], _arrays(rest[:end]), operands, rest[close + 1 :], bool(name[1]))


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Array(dtype, tuple(map(int, dims.split(","))) if dims else (), int(space[1]) if space else 0))
    return tuple(found)
