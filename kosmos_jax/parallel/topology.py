"""`v5p:4x4x4`, `h100:8x8`: which chips stand together, and how they are joined. Pure arithmetic, no JAX."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.hardware import CHIPS, Chip

# Google's names for generations of TPUs.
ALIASES = {"trillium": "v6e", "ironwood": "tpu7x"}


@lru_cache
def shapes(chip: Chip) -> list[tuple[int, ...]]:
    """All slices that there are of a TPU.

    Sources: docs.cloud.google.com/tpu/docs/v5e, v5p and v6e; generate_tpu_topologies of xpk 1.16. Three sizes are
    written in increasing order, as GKE wants them.
    """
    if chip.dimensions == 2:
        return [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    most = chip.largest_slice
    blocks = [
        (a, b, c)
        for a in range(4, round(most ** (1 / 3)) + 1, 4)
        for b in range(a, math.isqrt(most // a) + 1, 4)
        for c in range(b, min(256, most // (a * b)) + 1, 4)
    ]
    single = [(1, 1, 1)] if chip.name == "tpu7x" else []
    return [*single, (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *blocks]


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
        """Which directions of the torus are closed: 16 chips on v5e and v6e, multiples of 4 on the others."""
        if self.chip.dimensions == 3:
            return (all(size % 4 == 0 for size in self.shape),) * 3
        return tuple(self.chip.kind == "tpu" and size == 16 for size in self.shape)

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name of a slice: "v5p-128", "v5litepod-16"; empty for GPUs. It says nothing of the shape."""
        return f"{self.chip.gcloud_type}-{self.chips * self.chip.cores_in_name}" if self.chip.kind == "tpu" else ""

    @property
    def default_shape(self) -> tuple[int, ...]:
        """What Cloud TPU makes of the accelerator type alone: of all shapes with so many chips, the nearest to a cube.

        Source: docs.cloud.google.com/tpu/docs/types-topologies; xpk's table agrees for all slices of v5p.
        """
        return min((shape for shape in shapes(self.chip) if math.prod(shape) == self.chips), key=sum)

    def __str__(self) -> str:
        return (f"{self.slices} x " if self.slices > 1 else "") + f"{self.chip.name}:{self.name}"


def parse(text: str, slices: int = 1) -> Topology:
    """A topology from its name: "v5e:4x4", "v5p:4x4x4" (TPUs in each direction), "h100:8x8" (hosts x GPUs of a host).

    Raises:
      UserError: no such chip, or no such shape of it.
    """
    name, _, sizes = text.partition(":")
    chip = CHIPS.get(ALIASES.get(name, name))
    if not chip:
        # Without a guess: gb200 is near b200 in letters alone.
        raise UserError(f"--topology {text}: no chip is called {name!r}; there are {', '.join((*CHIPS, *ALIASES))}")
    if type(slices) is not int or slices < 1:
        raise UserError(f"--slices {slices}: write how many there are, 1 or more")
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", sizes):
        raise UserError(f"--topology {text}: write {_example(chip)}")
    shape = tuple(map(int, sizes.split("x")))
    problem = (_gpu_problem if chip.kind == "gpu" else _tpu_problem)(chip, shape, slices)
    if problem:
        raise UserError(f"--topology {text}: {problem}")
    return Topology(chip, shape, slices)


def _example(chip: Chip) -> str:
    if chip.kind == "gpu":
        return f"{chip.name}:8x8, for 8 hosts with 8 GPUs each"
    return f"{chip.name}:{'x'.join('4' * chip.dimensions)}, the number of chips in each direction"


def _gpu_problem(chip: Chip, shape: tuple[int, ...], slices: int) -> str | None:
    """Why there are no such hosts, for the reader; None if there are."""
    if len(shape) != 2:
        return f"write {_example(chip)}"
    if shape[1] > chip.chips_per_host or (shape[0] > 1 and shape[1] != chip.chips_per_host):
        return f"a host has {chip.chips_per_host} GPUs; write {_example(chip)}"
    return f"GPUs have no slices; for {slices} times as many write more hosts" if slices > 1 else None


def _tpu_problem(chip: Chip, shape: tuple[int, ...], slices: int) -> str | None:
    """Why there is no such slice, for the reader; None if there is."""
    if len(shape) != chip.dimensions:
        return f"{chip.name} is joined in {chip.dimensions} directions; write {_example(chip)}"
    if shape in shapes(chip):
        return None
    chips = math.prod(shape)
    if chips > chip.largest_slice:
        return f"a slice of {chip.name} has at most {chip.largest_slice} chips; for more set --slices"

    def distance(other: tuple[int, ...]) -> tuple:
        ratio = abs(math.log(math.prod(other) / chips))
        return ratio, sum(abs(a - b) for a, b in zip(sorted(shape), sorted(other), strict=True))

    near = sorted(shapes(chip), key=distance)[:3]
    names = [f"{chip.name}:{'x'.join(map(str, other))}" for other in near]
    return f"{chip.name} has no slice of this shape; near it are {', '.join(names)}"
