"""How long a step takes at least: the slowest of computing, reading memory, and sending over the two networks."""

import math
from dataclasses import dataclass

import numpy as np

from kosmos_jax.parallel.topology import Topology
from kosmos_jax.planning.collectives import Collective


@dataclass(frozen=True)
class Roofline:
    """Least seconds of a step by what they are spent on; bounds, not predictions.

    Attributes:
      compute: the program's matrix products at the chip's peak.
      memory: its reading and writing at the memory's full speed.
      ici: inside a TPU slice or a host of GPUs.
      dcn: between them.
      waiting: the share of `ici` and `dcn` that is not asynchronous, so that no other work runs meanwhile.
    """

    compute: float
    memory: float
    ici: float
    dcn: float
    waiting: float

    @property
    def seconds(self) -> float:
        """Everything that can overlap overlaps, the rest is added."""
        return max(max(self.compute, self.memory) + self.waiting, self.ici, self.dcn)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by the names that plans show."""
        return {"compute": self.compute, "HBM": self.memory, "ICI": self.ici, "DCN": self.dcn}

    @property
    def binding(self) -> str:
        """What a step waits for longest."""
        return max(self.parts, key=self.parts.get)


def roofline(topology: Topology, mesh_devices, flops: float, traffic: float, collectives: list[Collective]) -> Roofline:
    """Bounds for a program.

    Args:
      topology: the hardware.
      mesh_devices: the devices in the order of the mesh, as an array of any shape.
      flops, traffic: of one device, see kosmos_jax.planning.work.
      collectives: of one device.
    """
    chip, devices = topology.chip, mesh_devices.flatten()
    ici = dcn = waiting = 0.0
    for one in collectives:
        inside, outside = collective_seconds(one, topology, devices)
        ici += one.times * inside
        dcn += one.times * outside
        waiting += 0.0 if one.asynchronous else one.times * max(inside, outside)
    per_device = chip.devices_per_chip
    compute = flops * per_device / chip.peak_bf16
    return Roofline(compute, traffic * per_device / chip.hbm_bandwidth, ici, dcn, waiting)


def collective_seconds(one: Collective, topology: Topology, devices) -> tuple[float, float]:
    """Least time of a collective on the fast and on the slow network.

    On the fast one, what a device receives comes over all links that lead into its group: each direction of the torus
    that the group extends in gives one link, two where the direction is closed. On the slow one all devices of a host
    share its network: of what each receives, the part from elsewhere comes through it.

    Args:
      one: a collective of the program.
      topology: the hardware.
      devices: of the mesh, in its order.
    """
    chip, inside, outside = topology.chip, one.bytes, 0.0
    if one.slow:
        # With n members in d domains, members elsewhere bring (n - n/d) / (n - 1) of what a device receives.
        from_elsewhere = one.bytes * (one.size - one.size / one.domains) / max(1, one.size - 1)
        on_host = min(topology.domain, chip.chips_per_host * chip.devices_per_chip)
        if chip.kind == "gpu":
            # Devices of one host that are in the same group need the same bytes of a gather or reduction only once.
            on_host /= max(1, one.size // one.domains)
        outside = from_elsewhere * on_host / chip.dcn_bandwidth
        inside = one.bytes - from_elsewhere
    bandwidth = _links(one, topology, devices) * chip.link_bandwidth
    return inside * chip.devices_per_chip / bandwidth, outside


def _links(one: Collective, topology: Topology, devices) -> int:
    if topology.chip.kind == "gpu" or len(one.group) < 2:
        return 1
    places = np.array([devices[i].coords[: len(topology.shape)] for i in one.group])
    extents = np.ptp(places, axis=0) + 1
    links = 0
    for extent, size, wraps in zip(extents, topology.shape, topology.wraps, strict=True):
        if extent > 1:
            links += 2 if wraps and extent == size else 1
    return max(1, links)


def mfu(model_flops: float, seconds: float, topology: Topology) -> float:
    """Share of the hardware's best that the model FLOPs of a step, of all devices, are when it takes `seconds`."""
    return model_flops / (seconds * topology.all_chips * topology.chip.peak_bf16) if seconds else math.nan
