"""What the hardware is: one table of chips for metrics, plans and launchers, and the denominator of MFU.

Sources: Google Cloud's page of each TPU version (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x), of GPU
machine types and of their networks (docs.cloud.google.com/compute/docs/gpus/gpu-network-bandwidth); NVIDIA's data
sheets of H100, H200 and HGX B200 (SXM, dense); machine types and GKE labels from xpk 1.16. `hbm` of a TPU is what
libtpu 0.0.42 itself gives a program, measured by asking it for too much; of a GPU, what the driver shows. Links of v4
are from the scaling book (jax-ml.github.io/scaling-book/tpus).
"""

import time
from dataclasses import dataclass

GIB = 2**30
# To be given to JAX as XLA_PYTHON_CLIENT_MEM_FRACTION, whose default is 0.75.
GPU_MEMORY_FRACTION = 0.9

# Compiler options worth setting, by kind of chip. TPU: those that MaxText (benchmarks/xla_flags_library.py) and AXLearn
# (axlearn/common/compiler_options.py) both set for dense models. GPU: those of JAX-Toolbox (docs/GPU_performance.md).
# Which of them the installed compiler knows is for kosmos_jax.parallel.flags to find out.
TPU_OPTIONS = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}
# More for several slices, which sum gradients over the data center's network.
MULTISLICE_OPTIONS = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
GPU_OPTIONS = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_gpu_all_reduce_combine_threshold_bytes": 2**30,
    "xla_gpu_all_gather_combine_threshold_bytes": 2**30,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": 2**27,
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
    "xla_gpu_enable_while_loop_double_buffering": True,
}


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator; figures are for one chip, bandwidths in bytes a second.

    Attributes:
      name: what `--topology` calls it.
      kind: "tpu" or "gpu".
      device_kind: how JAX's name of the device begins.
      hbm: bytes that a program can have.
      peak_bf16: dense FLOP/s.
      hbm_bandwidth: reading and writing together.
      ici_links: links to neighbours in the torus of a TPU; 1 for a GPU's way into the switch of its host.
      link_bandwidth: of one such link in one direction.
      dcn_bandwidth: of a host's network, in one direction.
      chips_per_host: TPUs in a virtual machine, GPUs in a machine.
      largest_slice: TPUs in the largest slice; 0 for GPUs.
      devices_per_chip: how many devices JAX shows.
      cores_in_name: 2 where the number in Cloud TPU's accelerator type counts TensorCores: v5p-128 is 64 chips.
      gcloud_type: prefix of the accelerator type.
      gke_accelerator, machine_type: GKE's node label and the machine.
      compile_name, compile_config: what libtpu calls the chip, and how its cores are to be used.
    """

    name: str
    kind: str
    device_kind: str
    hbm: float
    peak_bf16: float
    hbm_bandwidth: float
    ici_links: int
    link_bandwidth: float
    dcn_bandwidth: float
    chips_per_host: int
    gke_accelerator: str
    machine_type: str
    largest_slice: int = 0
    devices_per_chip: int = 1
    cores_in_name: int = 1
    gcloud_type: str = ""
    compile_name: str = ""
    compile_config: str = ""

    @property
    def dimensions(self) -> int:
        """Of the torus: 2 or 3; 0 for GPUs, which are joined by switches."""
        return self.ici_links // 2

    @property
    def usable_hbm(self) -> float:
        """Bytes that are left to programs. NCCL and the CUDA context want a tenth of a GPU's memory (JAX-Toolbox)."""
        return GPU_MEMORY_FRACTION * self.hbm if self.kind == "gpu" else self.hbm

    def options(self, slices: int = 1) -> dict[str, bool | int]:
        """Compiler options worth setting."""
        if self.kind == "gpu":
            return GPU_OPTIONS
        return TPU_OPTIONS | (MULTISLICE_OPTIONS if slices > 1 else {})


def _tpu(name, **values) -> Chip:
    return Chip(name=name, kind="tpu", chips_per_host=4, **values)


def _gpu(name, **values) -> Chip:
    return Chip(name=name, kind="gpu", chips_per_host=8, ici_links=1, **values)


_H100 = dict(device_kind="NVIDIA H100", hbm=79.1 * GIB, peak_bf16=989e12, hbm_bandwidth=3.35e12, link_bandwidth=450e9)

# By chip: memory and speed, then networks, then names.
# fmt: off
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu(
            "v4", device_kind="TPU v4", hbm=30.75 * GIB, peak_bf16=275e12, hbm_bandwidth=1200e9,
            ici_links=6, link_bandwidth=45e9, dcn_bandwidth=25e9, largest_slice=4096,
            gcloud_type="v4", cores_in_name=2, gke_accelerator="tpu-v4-podslice", machine_type="ct4p-hightpu-4t",
            # Without megacore libtpu makes two devices of a chip, one for each core.
            compile_name="v4", compile_config="megacore",
        ),
        _tpu(
            "v5e", device_kind="TPU v5 lite", hbm=15.75 * GIB, peak_bf16=197e12, hbm_bandwidth=819e9,
            ici_links=4, link_bandwidth=50e9, dcn_bandwidth=12.5e9, largest_slice=256,
            gcloud_type="v5litepod", gke_accelerator="tpu-v5-lite-podslice", machine_type="ct5lp-hightpu-4t",
            compile_name="v5e",
        ),
        _tpu(
            "v5p", device_kind="TPU v5", hbm=95.74 * GIB, peak_bf16=459e12, hbm_bandwidth=2765e9,
            ici_links=6, link_bandwidth=100e9, dcn_bandwidth=25e9, largest_slice=6144,
            gcloud_type="v5p", cores_in_name=2, gke_accelerator="tpu-v5p-slice", machine_type="ct5p-hightpu-4t",
            compile_name="v5",
        ),
        _tpu(
            "v6e", device_kind="TPU v6", hbm=31.25 * GIB, peak_bf16=918e12, hbm_bandwidth=1638e9,
            ici_links=4, link_bandwidth=100e9, dcn_bandwidth=50e9, largest_slice=256,
            gcloud_type="v6e", gke_accelerator="tpu-v6e-slice", machine_type="ct6e-standard-4t", compile_name="v6e",
        ),
        _tpu(
            "tpu7x", device_kind="TPU7x", hbm=189.5 * GIB, peak_bf16=2307e12, hbm_bandwidth=7380e9,
            ici_links=6, link_bandwidth=100e9, dcn_bandwidth=50e9, largest_slice=9216, devices_per_chip=2,
            gcloud_type="tpu7x", cores_in_name=2, gke_accelerator="tpu7x", machine_type="tpu7x-standard-4t",
            compile_name="tpu7x",
        ),
        # The two differ in the network alone: 4 x 200 and 8 x 200 Gbit/s for the GPUs of a machine.
        _gpu("h100", dcn_bandwidth=100e9, gke_accelerator="nvidia-h100-80gb", machine_type="a3-highgpu-8g", **_H100),
        _gpu(
            "h100-mega", dcn_bandwidth=200e9, gke_accelerator="nvidia-h100-mega-80gb", machine_type="a3-megagpu-8g",
            **_H100,
        ),
        _gpu(
            "h200", device_kind="NVIDIA H200", hbm=139.8 * GIB, peak_bf16=989e12, hbm_bandwidth=4.8e12,
            link_bandwidth=450e9, dcn_bandwidth=400e9,
            gke_accelerator="nvidia-h200-141gb", machine_type="a3-ultragpu-8g",
        ),
        _gpu(
            "b200", device_kind="NVIDIA B200", hbm=178.4 * GIB, peak_bf16=2250e12, hbm_bandwidth=8.0e12,
            link_bandwidth=900e9, dcn_bandwidth=400e9, gke_accelerator="nvidia-b200", machine_type="a4-highgpu-8g",
        ),
    )
}
# fmt: on
# Cards that are good for a run on one machine and have no place in the table: dense bfloat16 FLOP/s.
OTHER_PEAKS = {"NVIDIA A100": 312e12}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device by its `device_kind`; the longest name that fits, or None."""
    fitting = [chip for chip in CHIPS.values() if device_kind.startswith(chip.device_kind)]
    return max(fitting, key=lambda chip: len(chip.device_kind), default=None)


def peak_flops(device) -> float | None:
    """Best FLOP/s of a device: from the table; on CPU a large float32 product, timed here; None if unknown."""
    if device.platform == "cpu":
        return _timed_product(device) / len(device.client.local_devices())
    if chip := chip_of(device.device_kind):
        return chip.peak_bf16 / chip.devices_per_chip
    return next((peak for start, peak in OTHER_PEAKS.items() if device.device_kind.startswith(start)), None)


def _timed_product(device, size=1536, repeats=5) -> float:
    # Here, because launchers read the table of chips and should not wait for JAX.
    import jax
    import jax.numpy as jnp

    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
