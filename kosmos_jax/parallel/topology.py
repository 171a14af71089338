"""`v5p:4x4x4`, `h100:8x8`: which chips stand together, and how they are joined. Pure arithmetic, no JAX."""

import difflib
import math
import re
from dataclasses import dataclass

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.hardware import CHIPS, Chip


@dataclass(frozen=True)
class Topology:
    """Equal slices of one kind of chip.

    Attributes:
      chip: what it is made of.
      shape: TPUs in each direction of a slice's torus; (hosts, GPUs of a host) for GPUs, which are all one slice.
      slices: how many there are; they are joined by the data center's network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """ "4x4x4"."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        """Chips of a slice."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Hosts of a slice; a single TPU has a machine of its own."""
        return self.shape[0] if self.chip.kind == "gpu" else max(1, self.chips // self.chip.chips_per_host)

    @property
    def all_chips(self) -> int:
        return self.chips * self.slices

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.all_chips * self.chip.devices_per_chip

    @property
    def domain(self) -> int:
        """JAX devices that are joined by the fast network: a TPU slice, or the GPUs of one host."""
        chips = self.shape[1] if self.chip.kind == "gpu" else self.chips
        return chips * self.chip.devices_per_chip

    @property
    def domains(self) -> int:
        return self.devices // self.domain

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which directions of the torus are closed: 16 chips on v5e and v6e, whole cubes of 4x4x4 on the others."""
        if self.chip.dimensions == 3:
            return (all(size % 4 == 0 for size in self.shape),) * 3
        return tuple(self.chip.kind == "tpu" and size == 16 for size in self.shape)

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name of a slice: "v5p-128", "v5litepod-16"; empty for GPUs."""
        return f"{self.chip.gcloud_type}-{self.chips * self.chip.cores_in_name}" if self.chip.kind == "tpu" else ""

    def __str__(self) -> str:
        return (f"{self.slices} x " if self.slices > 1 else "") + f"{self.chip.name}:{self.name}"


def parse(text: str, slices: int = 1) -> Topology:
    """A topology from its name.

    Args:
      text: "v5e:4x4" or "v5p:4x4x4" (TPUs in each direction), "h100:8x8" (hosts x GPUs of a host).
      slices: how many such slices.

    Raises:
      UserError: no such chip, or no such shape of it.
    """
    name, _, sizes = text.partition(":")
    if name not in CHIPS:
        nearest = difflib.get_close_matches(name, CHIPS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(CHIPS)}"
        raise UserError(f"--topology {text}: no chip is called {name!r}; {hint}")
    chip = CHIPS[name]
    if slices < 1:
        raise UserError(f"--slices {slices}: there is at least one")
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", sizes):
        raise UserError(f"--topology {text}: write {_example(chip)}")
    shape = tuple(map(int, sizes.split("x")))
    problem = _problem(chip, shape, slices)
    if problem:
        raise UserError(f"--topology {text}: {problem}")
    return Topology(chip, shape, slices)


def _example(chip: Chip) -> str:
    if chip.kind == "gpu":
        return f"{chip.name}:8x8, for 8 hosts with 8 GPUs each"
    return f"{chip.name}:{'x'.join('4' * chip.dimensions)}, the number of chips in each direction"


def _problem(chip: Chip, shape: tuple[int, ...], slices: int) -> str | None:
    """Why there is no such slice, for the reader; None if there is."""
    if chip.kind == "gpu":
        if len(shape) != 2:
            return f"write {_example(chip)}"
        if shape[1] > chip.chips_per_host or (shape[0] > 1 and shape[1] != chip.chips_per_host):
            return f"a host has {chip.chips_per_host} GPUs; write {_example(chip)}"
        return f"GPUs have no slices; for {slices} times as many write more hosts" if slices > 1 else None
    if len(shape) != chip.dimensions:
        return f"{chip.name} is joined in {chip.dimensions} directions; write {_example(chip)}"
    if math.prod(shape) == 1:
        return None
    if any(size % 2 for size in shape[:2]):
        return f"a host has 2x2 chips, so the first two sizes are even; write {_example(chip)}"
    if chip.dimensions == 2 and max(shape) > 16:
        return f"the largest slice of {chip.name} is 16x16; for more chips set --slices"
    return None
