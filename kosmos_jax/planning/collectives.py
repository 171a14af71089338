"""What the devices of a compiled program send each other in a step: kind, bytes, network, asynchronous or not."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from kosmos_jax.planning.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective operation of the program.

    Attributes:
      kind: one of `KINDS`.
      times: how often it runs in a step.
      bytes: that a device receives each time.
      size: devices in a group.
      group: the first group's devices, by their place in the mesh; empty where the text does not say.
      slow: whether groups reach beyond what the fast network joins (a TPU slice, a host of GPUs).
      domains: how many such places a group reaches.
      asynchronous: whether other work runs meanwhile.
      source: JAX's name of the operation.
    """

    kind: str
    times: float
    bytes: float
    size: int
    group: tuple[int, ...]
    slow: bool
    domains: int
    asynchronous: bool
    source: str


def collectives(program: Program, domain_of: np.ndarray) -> list[Collective]:
    """All collectives of a step.

    A fusion of XLA's TPU compiler that overlaps a collective with other work holds a copy of it in each of its parts,
    under one `chain_id`; the copies count once.

    Args:
      program: of one device; all devices run the same.
      domain_of: int[devices], for each place in the mesh (in row-major order) which slice or host it is in.
    """
    found = []
    for name, times in program.runs.items():
        chains = set()
        for instruction in program.computations[name].values():
            for one, chain in _inside(instruction, program, name, domain_of):
                if chain not in chains:
                    found.append(replace(one, times=times))
                chains |= {chain} - {None}
    return found


def _inside(
    instruction: Instruction, program: Program, name: str, domain_of
) -> Iterator[tuple[Collective, str | None]]:
    """The collectives of one instruction, fused ones too, each with its `chain_id`."""
    wraps = instruction.opcode in ("fusion", "async-start")
    for where in instruction.called["calls"] if wraps else [name]:
        computation = program.computations[where]
        for i in computation.values() if wraps else [instruction]:
            one = _collective(i, computation, domain_of)
            if one is None:
                continue
            # TPU's name for a reduce-scatter that is written as a fusion.
            if one.kind == "all-reduce" and "all-reduce-scatter" in where:
                one = replace(one, kind="reduce-scatter", bytes=one.bytes / 2)
            chain = re.search(r'chain_id="(\d+)"', i.attributes)
            overlapped = instruction.opcode == "async-start" or (wraps and chain is not None)
            yield replace(one, asynchronous=one.asynchronous or overlapped), chain and chain[1]


def _collective(instruction: Instruction, computation: dict[str, Instruction], domain_of) -> Collective | None:
    if instruction.opcode == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
        return _between_slices(instruction, int(domain_of.max()) + 1)
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if kind == "collective-permute":
        group, size = _permuted_pair(instruction.attributes, domain_of), 2
    else:
        group = replica_groups(instruction.attributes, len(domain_of))[0]
        size = len(group)
    if size <= 1:
        return None
    domains = len(set(domain_of[list(group)])) if group else 1
    sent = sum(computation[name].bytes for name in instruction.operands if name in computation)
    received = sent if kind == "collective-permute" else _received(kind, sent, size)
    asynchronous = instruction.opcode.endswith("-start") and '"is_sync":true' not in instruction.attributes
    return Collective(kind, 0, received, size, group, domains > 1, domains, asynchronous, _source(instruction))


def _received(kind: str, sent: float, size: int) -> float:
    """Bytes that each of `size` members receives, where each gives `sent`."""
    if kind == "all-gather":
        return sent * (size - 1)
    return (2 if kind == "all-reduce" else 1) * sent * (size - 1) / size


def _between_slices(send: Instruction, slices: int) -> Collective:
    """What libtpu hands to the host to exchange with other slices, always beside the computation."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)[1].lower().replace("_", "-")
    received = _received(kind, send.arrays[0].bytes, slices)
    kind = kind if kind in KINDS else "collective-permute"
    return Collective(kind, 0, received, slices, (), True, slices, True, _source(send))


def _source(instruction: Instruction) -> str:
    named = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return named[1] if named else ""


def _permuted_pair(attributes: str, domain_of) -> tuple[int, ...]:
    """A pair of a permutation's source and target, one that crosses between domains where there is any."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    pairs = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", pairs[1])] if pairs else []
    crossing = [pair for pair in pairs if domain_of[pair[0]] != domain_of[pair[1]]]
    return next(iter(crossing or pairs), ())


def replica_groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """The groups of a collective, in any of the three ways in which XLA writes them.

    replica_groups={{0,1},{2,3}}
    replica_groups=[2,2]<=[2,2]T(1,0)                    the rows of iota(4) reshaped, transposed, reshaped
    replica_groups=mesh['x'=2,'y'=2] {'y'}               all that differs in y alone; `device_ids=` may reorder
    replica_groups={}                                    one group of all
    """
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    if listed:
        groups = [tuple(map(int, ids.split(","))) for ids in re.findall(r"\{([\d,]+)\}", listed[1])]
        return groups or [tuple(range(devices))]
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        return [tuple(map(int, row)) for row in _iota(iota[1])]
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes)
    if mesh:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        order = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(sizes.values()))
        return _mesh_groups(sizes, order.flatten(), mesh[3])
    return [tuple(range(devices))]


def _iota(text: str) -> np.ndarray:
    """Ids by "[RESULT]<=[DIMS]T(PERMUTATION)"; without RESULT they are one row, without PERMUTATION in order."""
    parts = re.fullmatch(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    result, dims, permutation = (list(map(int, part.split(","))) if part else None for part in parts)
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(permutation or range(len(dims))).reshape(result or -1)


def _mesh_groups(sizes: dict[str, int], order: np.ndarray, named: str) -> list[tuple[int, ...]]:
    """Groups over the named axes of a mesh; 'x':(2)4 is the part of x of size 4 with sizes of 2 before it."""
    shape, chosen = [], []
    for axis, size in sizes.items():
        part = re.search(rf"'{re.escape(axis)}'(?::\((\d+)\)(\d+))?", named)
        if part is None or part[1] is None:
            chosen += [part is not None]
            shape += [size]
        else:
            before, inside = int(part[1]), int(part[2])
            chosen += [False, True, False]
            shape += [before, inside, size // (before * inside)]
    ids = order.reshape(shape)
    last = [axis for axis, is_chosen in enumerate(chosen) if is_chosen]
    ids = np.moveaxis(ids, last, range(-len(last), 0))
    return [tuple(map(int, row)) for row in ids.reshape(-1, math.prod(shape[axis] for axis in last))]
