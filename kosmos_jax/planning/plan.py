"""A plan: the training step of a config, compiled for a topology and examined."""

import collections
import math
import time
from dataclasses import asdict, dataclass
from functools import partial

import jax
import numpy as np

from kosmos_jax.config import apply_overrides
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import make_mesh, preset
from kosmos_jax.parallel.topology import Topology
from kosmos_jax.planning import hlo, memory, work
from kosmos_jax.planning.collectives import Collective, collectives
from kosmos_jax.planning.devices import make_devices
from kosmos_jax.planning.roofline import Roofline, mfu, roofline
from kosmos_jax.training.compile import batch_shapes, make_step
from kosmos_jax.training.feed import batch_shardings
from kosmos_jax.training.flops import step_flops
from kosmos_jax.training.record import parameter_counts

# XLA chooses the tiles of its Triton products by timing them; where there is no GPU to time them on, it may fail.
WITHOUT_DEVICE = {"tpu": {}, "gpu": {"xla_gpu_enable_triton_gemm": False}}

NOT_ASKED = "the compiler was not asked: parameters, optimizer and batches are too large"


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind on one network, summed over a step, for one device."""

    kind: str
    network: str
    asynchronous: bool
    count: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """What a step will need.

    Attributes:
      topology, chips, mesh: the hardware and how it is used.
      settings: values of the config that decide on memory and speed.
      parameters: by tower, all, and those that train.
      memory: kind -> bytes on one device; see kosmos_jax.planning.memory.
      limit: bytes that a device has for a program.
      model_flops: tower -> FLOPs of a step with every place of the batch filled; nothing counts twice.
      program_flops: what the compiled program does on all devices: with remat, and with what devices do in common.
      traffic: collectives; empty when the compiler refused.
      roofline: least times; None when the compiler refused.
      mfu: upper bound for model FLOPs utilisation; None likewise.
      compile_seconds: of the compiler alone, on this machine; 0 if it was not asked, see `make_plan`.
      kernels: hand-written kernels in the program, by name.
      notes: what the figures leave out.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    settings: dict
    parameters: dict[str, int]
    memory: dict[str, int]
    limit: int
    model_flops: dict[str, float]
    compile_seconds: float
    program_flops: float = 0.0
    traffic: tuple[Traffic, ...] = ()
    roofline: Roofline | None = None
    mfu: float | None = None
    kernels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.roofline is not None and self.used <= self.limit

    @property
    def state_fits(self) -> bool:
        """Whether a device has room for what lies there before a step begins, so that smaller steps may fit."""
        return self.used - self.memory.get("temporaries", 0) <= self.limit

    def as_dict(self) -> dict:
        """For JSON: all of it, and what is derived."""
        derived = {"used": self.used, "fits": self.fits}
        if self.roofline:
            derived |= {"binding": self.roofline.binding, "step_seconds_at_least": self.roofline.seconds}
        return asdict(self) | derived


def mesh_sizes(config, topology: Topology, mesh_name: str) -> dict[str, int]:
    """The sizes of a preset of kosmos_jax.parallel.mesh for a model on a topology.

    Args:
      config: the complete config.
      topology: the hardware.
      mesh_name: the preset's.

    Raises:
      UserError: there is no such preset.
    """
    encoders = (section.encoder.width for section in config.model.perception.values())
    widths = math.gcd(config.model.text.width, *encoders)
    return preset(mesh_name, topology.domain, topology.domains, widths)


def prepared(config, topology: Topology, mesh_name: str | None = None, **changes):
    """The config as it would run there.

    Args:
      config: as loaded.
      mesh_name: one of kosmos_jax.parallel.mesh.PRESETS, or None for the config's own mesh.
      changes: further values by dotted key, with "__" for the dots.

    Raises:
      UserError: there is no such mesh.
    """
    values = {key.replace("__", "."): value for key, value in changes.items()}
    # "auto" looks at the devices of this machine, which are not those of the plan.
    if config.model.dtype == "auto":
        values["model.dtype"] = "bfloat16"
    if mesh_name:
        sizes = mesh_sizes(config, topology, mesh_name)
        values |= {f"mesh.{axis}": size for axis, size in sizes.items()}
    return apply_overrides(config, [f"{key}={value}" for key, value in values.items()])


def make_plan(config, topology: Topology) -> Plan:
    """Compiles the step of a `prepared` config and examines it; where the state alone is too large, asks no compiler.

    Raises:
      UserError: no compiler for the hardware, config and mesh do not fit each other, or the compiler fails.
    """
    mesh = make_mesh(config.mesh, make_devices(topology))
    step, batch = make_step(config, mesh), batch_shapes(config, mesh)
    arguments = memory.argument_bytes(step, batch, batch_shardings(config.model, mesh))
    plan = partial(_plan, config, topology, mesh, step, batch)
    empty = plan(memory.with_arguments(arguments, temporaries=0), 0.0, notes=(NOT_ASKED,))
    if not empty.state_fits:
        return empty
    lowered = step.function.lower(step.abstract, batch)
    compiled, temporaries, seconds = compiled_for(topology, mesh, lowered, sum(arguments.values()))
    if compiled is None:
        return plan(memory.with_arguments(arguments, temporaries=temporaries), seconds)
    held = memory.by_kind(compiled.memory_analysis(), arguments)
    examined = _examined(compiled, config, topology, mesh, step, batch)
    return plan(held, seconds, **examined)


def compiled_for(topology: Topology, mesh, lowered, arguments: int):
    """Asks the compiler for hardware that is not here.

    Args:
      topology, mesh: the hardware.
      lowered: of jax.jit.
      arguments: bytes of all arguments on one device.

    Returns:
      (jax.stages.Compiled, or None if the memory does not suffice; bytes of temporaries; seconds that it took).

    Raises:
      UserError: the compiler fails.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=WITHOUT_DEVICE[topology.chip.kind])
        return compiled, compiled.memory_analysis().temp_size_in_bytes, time.perf_counter() - start
    except jax.errors.JaxRuntimeError as error:
        temporaries = memory.refused(str(error), arguments)
        if temporaries is None:
            raise UserError(
                f"the compiler cannot make a program for {topology} with mesh {dict(mesh.shape)}: "
                f"{str(error).splitlines()[0][:300]}"
            ) from error
        return None, temporaries, time.perf_counter() - start


def _plan(config, topology, mesh, step, batch, held, compile_seconds, **examined) -> Plan:
    return Plan(
        topology=str(topology),
        chips=topology.all_chips,
        mesh=dict(mesh.shape),
        settings={
            "model": config.name,
            "rows": config.data.batch_rows,
            "seq_len": config.data.seq_len,
            **{f"{name} items": int(np.prod(items.shape[:2])) for name, items in batch["media"].items()},
            "microbatches": config.training.microbatches,
            "remat": config.model.remat,
        },
        parameters=parameter_counts(step.abstract.trainable, step.abstract.frozen),
        memory=held,
        limit=int(topology.chip.usable_hbm / topology.chip.devices_per_chip),
        model_flops=model_flops(config, step, batch),
        compile_seconds=compile_seconds,
        **examined,
    )


def model_flops(config, step, batch) -> dict[str, float]:
    """By tower, as if every place of the batch were filled.

    Args:
      config: the complete config.
      step: training.compile.Step.
      batch: of jax.ShapeDtypeStruct.
    """
    tokens = float(np.prod(batch["tokens"].shape))
    items = {name: float(np.prod(array.shape[:2])) for name, array in batch["media"].items()}
    return step_flops(config.model, list(step.abstract.trainable), config.data.seq_len, tokens, items)


def _examined(compiled, config, topology, mesh, step, batch) -> dict:
    """What the text of the program tells."""
    program = hlo.parse(compiled.as_text())
    found = collectives(program, domains(topology, mesh))
    flops = work.flops(program)
    times = roofline(topology, mesh.devices, flops, work.memory_traffic(program), found)
    total = sum(model_flops(config, step, batch).values())
    return dict(
        program_flops=flops * topology.devices,
        traffic=summed(found),
        roofline=times,
        mfu=mfu(total, times.seconds, topology),
        kernels=tuple(sorted(work.kernels(program))),
        notes=tuple(_notes(program)),
    )


def domains(topology: Topology, mesh) -> np.ndarray:
    """int[devices]: for each place in the mesh, which slice or host it is in."""
    ordered = sorted(mesh.devices.flat, key=lambda device: (getattr(device, "slice_index", 0), device.id))
    order = {device: place for place, device in enumerate(ordered)}
    return np.array([order[device] // topology.domain for device in mesh.devices.flat])


def summed(found: list[Collective]) -> tuple[Traffic, ...]:
    """Collectives by kind, network and whether they are asynchronous; the most bytes first."""
    sums = collections.defaultdict(lambda: [0.0, 0.0])
    for one in found:
        entry = sums[one.kind, "DCN" if one.slow else "ICI", one.asynchronous]
        entry[0] += one.times
        entry[1] += one.times * one.bytes
    rows = [Traffic(*key, *entry) for key, entry in sums.items()]
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def _notes(program) -> list[str]:
    notes = []
    if loops := program.unknown_loops:
        notes.append(f"{len(loops)} loops of unknown length count once: {loops[0]}, ...")
    if opaque := work.opaque_kernels(program):
        notes.append(f"the work inside {', '.join(sorted(opaque))} is not counted, so compute is too low")
    return notes
