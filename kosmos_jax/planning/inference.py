"""A plan for generation: what a mesh can hold, and the real programs that read and write, compiled for a topology."""

import math
from dataclasses import asdict, dataclass, replace

import jax
from jax.sharding import NamedSharding

from kosmos_jax.errors import UserError
from kosmos_jax.inference.device import Device
from kosmos_jax.inference.engine import CHUNK, device_shapes
from kosmos_jax.modality import EOS, modalities
from kosmos_jax.model import abstract_model
from kosmos_jax.model.positions import most_positions
from kosmos_jax.parallel.hardware import GIB
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.parallel.sharding import parameter_specs
from kosmos_jax.parallel.topology import Topology
from kosmos_jax.planning import hlo, work
from kosmos_jax.planning.collectives import collectives
from kosmos_jax.planning.devices import make_devices
from kosmos_jax.planning.memory import shard_bytes
from kosmos_jax.planning.plan import Traffic, compiled_for, domains, summed
from kosmos_jax.planning.roofline import Roofline, roofline

# Of slots, unless others are asked for: a caption, a dialogue, a few-shot prompt.
LENGTHS = (256, 768, 2048)
# Slots take this share of what weights, pages, blocks and the table leave, the same bytes for each length; then less,
# until the programs' temporaries fit too, in so many tries at most.
SHARE, TRIES = 0.9, 3


@dataclass(frozen=True)
class Pool:
    """Slots of one length, with one branch each.

    Attributes:
      length, slots: tokens of each, and how many there are on all devices.
      slot_bytes: of one, on all devices that share it: keys, values, the text, and how tokens are chosen.
      step: least times of a step of all of them.
    """

    length: int
    slots: int
    slot_bytes: int
    step: Roofline | None = None


@dataclass(frozen=True)
class InferencePlan:
    """What generation will need. Times are bounds, and have no latency of a kernel or a collective in them.

    Attributes:
      topology, chips, mesh, model, int8: what was asked.
      token_bytes: keys and values of a token, on all devices that share them.
      memory: kind -> bytes on one device.
      limit: bytes that a device has for programs.
      pools: by length.
      programs: "decode 256 x 420", "read 32" -> bytes of temporaries, seconds of the compiler; empty if not asked.
      moved: bytes to and from memory in a step of that decode, by its text, without what only some options need.
      traffic: collectives of that step.
      alone: least times of a step of the shortest pool with one slot on each device.
      piece: of reading a piece of a prompt.
      notes: what to look at.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    model: str
    int8: tuple[str, ...]
    token_bytes: int
    memory: dict[str, int]
    limit: int
    pools: tuple[Pool, ...]
    programs: dict[str, tuple[int, float]]
    moved: float = 0.0
    traffic: tuple[Traffic, ...] = ()
    alone: Roofline | None = None
    piece: Roofline | None = None
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.piece is not None and self.used <= self.limit

    @property
    def tokens_per_second(self) -> dict[str, float]:
        """At most: with all slots taken (the pools take turns), with one, and of a prompt."""
        full = sum(pool.slots for pool in self.pools) / sum(pool.step.seconds for pool in self.pools)
        read = {"prompt": CHUNK / self.piece.seconds, "prompt by FLOPs": CHUNK / self.piece.compute}
        return {"all slots": full, "one slot": 1 / self.alone.seconds} | read

    def as_dict(self) -> dict:
        """For JSON: all of it, and what is derived."""
        plan = asdict(self) | {"used": self.used, "fits": self.fits}
        if self.piece:
            plan["tokens_per_second"] = self.tokens_per_second
            for pool, told in zip(self.pools, plan["pools"], strict=True):
                told |= {"seconds": pool.step.seconds, "binding": pool.step.binding}
        return plan


def default_mesh(config, topology: Topology) -> dict[str, int]:
    """Heads over the devices that the fast network joins, as many as divide them, and slots over the rest.

    Each device then reads the smallest part of the weights in a step.
    """
    tensor = math.gcd(config.model.text.heads, topology.domain)
    return dict(data=topology.devices // tensor, fsdp=1, tensor=tensor, context=1)


def make_inference_plan(config, topology: Topology, slots: dict[int, int] | None = None, int8=()) -> InferencePlan:
    """Compiles what generates for a `prepared` config, and examines it.

    Of the pools, the decode of the one with most to do is compiled: for the others it is the same at other sizes.

    Args:
      config: with the mesh.
      topology: the hardware.
      slots: length -> slots; None for as many as fit of `LENGTHS`.
      int8: see `Device`.

    Raises:
      UserError: no compiler for the hardware, config, slots and mesh do not fit each other, or the compiler fails.
    """
    mesh = make_mesh(config.mesh, make_devices(topology))
    check(config.model.text, dict(mesh.shape), slots or {})
    if slots:
        return _plan(config, topology, mesh, slots, int8)
    share = SHARE
    for _ in range(TRIES):
        plan = _plan(config, topology, mesh, share, int8)
        if plan.fits or not plan.programs:
            break
        grows = plan.memory["slots"] + plan.memory["temporaries"]  # with the slots
        share *= 0.97 * max(0, plan.limit - plan.used + grows) / grows
    return plan


def check(text, mesh: dict[str, int], slots: dict[int, int]):
    """Stops where slots of a `config.model.text` cannot be, or cannot be split.

    Raises:
      UserError: with what to try.
    """
    if text.heads % mesh["tensor"]:
        raise UserError(
            f"mesh.tensor={mesh['tensor']} does not divide the {text.heads} heads of model.text, so every device would "
            f"hold all keys and values; try {math.gcd(text.heads, mesh['tensor'])}"
        )
    for length, count in slots.items():
        if length % CHUNK or length > most_positions(text):
            raise UserError(
                f"--slots {length}x{count}: a length is a multiple of {CHUNK}, the tokens of a piece, and at most "
                f"{most_positions(text)}, the model's positions"
            )
        if count % mesh["data"]:
            raise UserError(
                f"--slots {length}x{count}: mesh.data={mesh['data']} does not divide {count} slots, so every device "
                f"would hold all of them; try {-(-count // mesh['data']) * mesh['data']}"
            )


def device_for(config, mesh, longest: int, int8=()) -> Device:
    """A `Device` of shapes alone, whose longest slot has `longest` tokens."""
    _, shapes = abstract_model(config.model)
    specs = parameter_specs(config.model, shapes, mesh)
    params = {path: x.update(sharding=NamedSharding(mesh, specs[path])) for path, x in shapes.items()}
    sizes = device_shapes(modalities(config.model), longest)
    return Device(config.model, params, eos=EOS, int8=int8, **sizes)


def on_device(tree) -> int:
    """Bytes of a tree of shapes on one device."""
    return shard_bytes(tree, jax.tree.map(lambda x: x.sharding, tree))


def turn(program: hlo.Program) -> hlo.Program:
    """A step of the loop that has most products, without the branches that only some options take."""
    bodies = [i.called["body"][0] for _, _, i in program.instructions() if i.opcode == "while"]
    plain = {
        name: {i.name: i for i in computation.values() if i.opcode != "conditional"}
        for name, computation in program.computations.items()
    }
    return max((hlo.Program(plain, body) for body in bodies), key=work.flops)


def _plan(config, topology: Topology, mesh, slots: dict[int, int] | float, int8) -> InferencePlan:
    """A plan for slots, or for those that a share of the free memory holds."""
    text, data, tensor = config.model.text, mesh.shape["data"], mesh.shape["tensor"]
    given = isinstance(slots, dict)
    lengths = sorted(slots) if given else [n for n in LENGTHS if n <= most_positions(text)]
    longest, device = lengths[-1], device_for(config, mesh, lengths[-1], int8)
    one = {length: device.shapes(length, data) for length in lengths}  # one slot on each device
    slot_bytes = {length: on_device(shapes["slots"]) for length, shapes in one.items()}
    cache_bytes = {n: on_device((shapes["page"].k_BHSK, shapes["page"].v_BHSK)) for n, shapes in one.items()}
    held = {kind: on_device(one[longest][kind]) for kind in ("weights", "table", "blocks")}
    held["pages"] = sum(on_device(shapes["page"]) for shapes in one.values())
    limit = int(topology.chip.usable_hbm / topology.chip.devices_per_chip)
    free = limit - sum(held.values())
    if not given:
        counts = {length: int(slots * max(0, free) / len(lengths) // slot_bytes[length]) for length in lengths}
        slots = {length: count * data for length, count in counts.items() if count}
    held["slots"] = sum(count // data * slot_bytes[length] for length, count in slots.items())
    plan = InferencePlan(
        topology=str(topology),
        chips=topology.all_chips,
        mesh=dict(mesh.shape),
        model=config.name,
        int8=tuple(int8),
        token_bytes=tensor * cache_bytes[longest] // longest,
        memory=held,
        limit=limit,
        pools=tuple(Pool(length, slots[length], tensor * slot_bytes[length]) for length in sorted(slots)),
        programs={},
    )
    if not slots or plan.used > limit:
        each = ", ".join(f"{slot_bytes[length] / GIB:.2f} for a slot of {length}" for length in lengths)
        note = f"the compiler was not asked: a device has {free / GIB:.2f} GiB for slots, and needs {each}"
        return replace(plan, notes=(note,))

    busiest = max(slots, key=lambda length: slots[length] * (slot_bytes[length] + 4 * text.vocab_size))
    shapes = device.shapes(busiest, slots[busiest]) | {"page": one[longest]["page"]}
    layers, head = (on_device(shapes["weights"][part]) for part in ("decoder", "embedding"))
    read_bytes = layers + head + on_device((shapes["page"], shapes["table"]))
    arguments = dict(decode=layers + head + on_device(shapes["slots"]), read=read_bytes)
    names = dict(decode=f"decode {busiest} x {slots[busiest]}", read=f"read {CHUNK}")
    programs, stats, found = {}, [], {}
    for name, lowered in device.lowered(shapes).items():
        compiled, *programs[names[name]] = compiled_for(topology, mesh, lowered, arguments[name])
        if compiled:
            stats.append(compiled.memory_analysis())
            found[name] = hlo.parse(compiled.as_text())
    held |= dict(
        padding=max(0, sum(of.argument_size_in_bytes for of in stats) - sum(arguments[name] for name in found)),
        temporaries=max(temporaries for temporaries, _ in programs.values()),
        program=sum(of.generated_code_size_in_bytes for of in stats),
    )
    plan = replace(plan, memory=held, programs={name: tuple(told) for name, told in programs.items()})
    if len(found) < len(programs):
        return plan

    matrices = [
        x for x in jax.tree.leaves((shapes["weights"]["decoder"], shapes["weights"]["embedding"])) if x.ndim == 2
    ]
    products = 2 * sum(math.prod(x.sharding.shard_shape(x.shape)) for x in matrices)
    step, read, places = turn(found["decode"]), found["read"], domains(topology, mesh)
    sent = collectives(step, places)

    def bound(length: int, count: int) -> Roofline:
        """Of a pool with `count` slots on a device."""
        flops = count * (products + 4 * text.layers * text.width // tensor * length)
        scaled = [replace(one, bytes=one.bytes * count * data / slots[busiest]) for one in sent]
        return roofline(topology, mesh.devices, flops, layers + head + count * cache_bytes[length], scaled)

    moved = work.memory_traffic(step)
    reading = collectives(read, places)
    least = layers + head + slots[busiest] // data * cache_bytes[busiest]
    return replace(
        plan,
        pools=tuple(replace(pool, step=bound(pool.length, pool.slots // data)) for pool in plan.pools),
        moved=moved,
        traffic=summed(sent),
        alone=bound(lengths[0], 1),
        piece=roofline(topology, mesh.devices, work.flops(read), layers + cache_bytes[longest], reading),
        notes=tuple(_notes(mesh, shapes, step, sent, moved / least)),
    )


def _notes(mesh, shapes, step: hlo.Program, sent, times_as_much: float) -> list[str]:
    """What makes a step slower than its bound, or memory scarcer than it has to be."""
    keys = jax.tree.leaves(shapes["slots"][0].cache.k_BHSK)[0]
    size, embedding = math.prod(keys.sharding.shard_shape(keys.shape)), shapes["weights"]["embedding"]
    kernels = [on_device(x) for x in jax.tree.leaves(shapes["weights"]["decoder"]) if x.ndim == 2]
    large = min(*kernels, on_device(keys))
    notes = [
        f"a step receives {one.bytes / 2**20:.0f} MiB by {one.kind} {one.times:.0f} times: {one.source}"
        for one in sent
        if one.kind in ("all-gather", "all-to-all") and one.bytes >= large
    ]
    copies = [i for _, _, i in step.instructions() if _copies(i, step) and size in [a.elements for a in i.arrays]]
    if copies:
        notes.append(f"a step copies the keys or values of a layer {len(copies)} times, as in {copies[0].name}")
    loops = [(i, inside) for _, inside, i in step.instructions() if i.opcode == "while"]
    if loops:
        turns = sum(step.trip_count(*loop) or 1 for loop in loops)
        notes.append(
            f"{len(loops)} loops inside a step take {turns:,} turns, one after another: the bound has no such latency"
        )
    if times_as_much > 1.25:
        notes.append(f"the compiled step moves {times_as_much:.1f} times the bytes of weights, keys and values")
    if mesh.shape["tensor"] > 1 and embedding.sharding.is_fully_replicated:
        size = on_device(embedding) / GIB
        notes.append(
            f"mesh.tensor does not divide the vocabulary: every device holds and reads the head, {size:.2f} GiB"
        )
    for axis in ("fsdp", "context"):
        if mesh.shape[axis] > 1:
            notes.append(f"{mesh.shape[axis]} devices along mesh.{axis} hold the same keys and values")
    return notes


def _copies(instruction: hlo.Instruction, program: hlo.Program) -> bool:
    """Whether an instruction only moves what it is given."""
    if instruction.opcode == "fusion":
        instruction = hlo.root_of(program.fused(instruction))
    return instruction.opcode in ("copy", "transpose")
