"""Devices you do not have: what JAX compiles for when a program is only examined."""

import logging
import os
from importlib.metadata import PackageNotFoundError, version

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.topology import Topology

log = logging.getLogger(__name__)
# Read by libtpu when it is loaded: do not ask Google's metadata server what this machine is (and do not complain that
# nobody said), do not reserve the TPU that may be in it, and print errors alone.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    # libtpu 0.0.42 works through fused products recursively and overruns its threads' 64 KiB of stack.
    "LIBTPU_INIT_ARGS": "--fibers_default_thread_stack_size=4194304",
}
# XLA's GpuTargetConfig: what the compiler wants to know of a GPU. Limits of compute capability 9.0 and 10.0 are from
# the CUDA programming guide; the rest is filled in from the table of chips.
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 fpus_per_core: 128
  core_count: {cores} l2_cache_size: {l2} clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f} cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""
_HOPPER = dict(cores=132, l2=50 * 2**20, clock=1.98, major=9)
_BLACKWELL = dict(cores=148, l2=126 * 2**20, clock=1.965, major=10)
GPUS = {
    "h100": _HOPPER | dict(name="NVIDIA H100 80GB HBM3"),
    "h100-mega": _HOPPER | dict(name="NVIDIA H100 80GB HBM3"),
    "h200": _HOPPER | dict(name="NVIDIA H200"),
    "b200": _BLACKWELL | dict(name="NVIDIA B200"),
}


def examine_only() -> None:
    """Settings of this process, to be made before JAX looks for devices: it should look for none but the CPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.update(LIBTPU_ENVIRONMENT)
    import jax

    jax.config.update("jax_platforms", "cpu")


def make_devices(topology: Topology) -> list:
    """The devices of all slices.

    Raises:
      UserError: the compiler for them is not installed, or does not know such a topology.
    """
    make, package = (_tpus, "libtpu") if topology.chip.kind == "tpu" else (_gpus, "jax-cuda13-plugin")
    if not _installed(package):
        raise UserError(
            f"to plan for {topology.chip.name} the compiler for it has to be here, package {package}; it needs no "
            "such hardware: pip install 'kosmos_jax[plan]'"
        )
    try:
        devices = make(topology)
    except Exception as error:
        # Whatever a plug-in of another version may raise; there is nothing of ours in between.
        raise UserError(
            f"--topology {topology}: the compiler for it refuses: {_first_line(error)}. Is its version that of jax "
            f"{version('jax')}? pip install 'jax=={version('jax')}' 'kosmos_jax[plan]' takes the one that fits"
        ) from error
    if len(devices) != topology.devices:
        raise UserError(f"--topology {topology}: {topology.devices} devices expected, the compiler has {len(devices)}")
    return devices


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _tpus(topology: Topology) -> list:
    from jax.experimental import topologies

    chip = topology.chip
    bounds = (1, 1, 1) if topology.chips == 1 else (2, 2, 1)
    wraps = (*topology.wraps, False)[:3]  # libtpu wants three
    options = dict(chips_per_host_bounds=bounds, num_slices=topology.slices, wrap=wraps)
    if chip.compile_config:
        options["chip_config_name"] = chip.compile_config
    name = f"{chip.compile_name}:{topology.name}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def _gpus(topology: Topology) -> list:
    from jax.experimental import topologies

    chip = topology.chip
    description = _GPU.format(bandwidth=chip.hbm_bandwidth, memory=chip.hbm, **GPUS[chip.name])
    hosts, gpus = topology.shape
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", topology=f"{hosts}x{gpus}x1", target_config=description
    ).devices
