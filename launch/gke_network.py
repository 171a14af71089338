"""What a pod needs so that NCCL reaches other hosts at full speed, for each of Google's GPU machines.

The libraries lie on the nodes, where the DaemonSets that Google names for each machine have put them
(nccl-tcpx-installer, nccl-tcpxo-installer, nccl-rdma-installer). The networks have the names of Google's guides; a
cluster can have others. Sources: docs.cloud.google.com/kubernetes-engine/docs/how-to/gpu-bandwidth-gpudirect-tcpx; the
charts of AI-Hypercomputer/gpu-recipes; xpk's workload decorators; SkyPilot 0.14.1. Not tried on such machines by us.
"""

import json
from dataclasses import dataclass, field

from kosmos_jax.errors import UserError

GPUS = tuple(f"nvidia{number}" for number in range(8)) + ("nvidiactl", "nvidia-uvm")
# The maker's values for the machine's NICs and processors.
TCPX_VARIABLES = {
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_GPUDIRECTTCPX_CTRL_DEV": "eth0",
    "NCCL_GPUDIRECTTCPX_SOCKET_IFNAME": "eth1,eth2,eth3,eth4",
    "NCCL_GPUDIRECTTCPX_TX_BINDINGS": "eth1:8-21,112-125;eth2:8-21,112-125;eth3:60-73,164-177;eth4:60-73,164-177",
    "NCCL_GPUDIRECTTCPX_RX_BINDINGS": "eth1:22-35,126-139;eth2:22-35,126-139;eth3:74-87,178-191;eth4:74-87,178-191",
    "NCCL_GPUDIRECTTCPX_PROGRAM_FLOW_STEERING_WAIT_MICROS": "500000",
    "NCCL_GPUDIRECTTCPX_UNIX_CLIENT_PREFIX": "/run/tcpx",
    "NCCL_GPUDIRECTTCPX_FORCE_ACK": "0",
    "NCCL_CROSS_NIC": "0",
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
    "NCCL_NSOCKS_PERTHREAD": "4",
    "NCCL_SOCKET_NTHREADS": "1",
    "NCCL_NET_GDR_LEVEL": "PIX",
    "NCCL_DYNAMIC_CHUNK_SIZE": "524288",
    "NCCL_P2P_PXN_LEVEL": "0",
    "NCCL_P2P_NET_CHUNKSIZE": "524288",
    "NCCL_P2P_PCI_CHUNKSIZE": "524288",
    "NCCL_P2P_NVL_CHUNKSIZE": "1048576",
    "NCCL_BUFFSIZE": "4194304",
    "NCCL_MIN_NCHANNELS": "8",
    "NCCL_MAX_NCHANNELS": "8",
}


@dataclass(frozen=True)
class Daemon:
    """A container beside ours that moves data between the GPUs' memory and the network cards."""

    name: str
    image: str
    command: tuple[str, ...]
    capabilities: tuple[str, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    """How the GPUs of one type of machine reach others."""

    networks: tuple[str, ...]  # of eth1, eth2, ...; eth0 is the pod's own
    host_paths: dict[str, str]  # path in the container -> on the node
    variables: dict[str, str] = field(default_factory=dict)
    script: str = ""  # of shell, sets further variables
    daemon: Daemon | None = None


NVIDIA = {"/usr/local/nvidia": "/home/kubernetes/bin/nvidia"}
TCPX = Network(
    networks=tuple(f"vpc{number}" for number in range(1, 5)),
    host_paths=NVIDIA | {"/run/tcpx": "/run/tcpx"},
    variables=TCPX_VARIABLES,
    daemon=Daemon(
        name="tcpx-daemon",
        image="us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpx/tcpgpudmarxd-dev:v2.0.11",
        command=(
            *("/tcpgpudmarxd/build/app/tcpgpudmarxd", "--gpu_nic_preset", "a3vm", "--gpu_shmem_type", "fd"),
            *("--uds_path", "/run/tcpx", "--setup_param", "--verbose 128 2 0"),
        ),
        capabilities=("NET_ADMIN",),
        devices=GPUS,
    ),
)
TCPXO = Network(
    networks=tuple(f"vpc{number}" for number in range(1, 9)),
    host_paths=NVIDIA | {"/dev/aperture_devices": "/dev/aperture_devices"},
    variables={
        "NCCL_LIB_DIR": "/usr/local/nvidia/lib64",
        "NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY": "/dev/aperture_devices",
    },
    script="/usr/local/nvidia/lib64/nccl-env-profile.sh",
    daemon=Daemon(
        name="tcpxo-daemon",
        image="us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo/tcpgpudmarxd-dev:v1.0.17",
        command=(
            *("bash", "/fts/entrypoint_rxdm_container.sh"),
            *("--num_hops=2", "--num_nics=8", "--uid=", "--alsologtostderr"),
        ),
        capabilities=("NET_ADMIN", "NET_BIND_SERVICE"),
        devices=(*GPUS, "dmabuf_import_helper"),
    ),
)
GIB = Network(
    networks=("gvnic-1", *(f"rdma-{number}" for number in range(8))),
    host_paths=NVIDIA | {"/usr/local/gib": "/home/kubernetes/bin/gib"},
    script="/usr/local/gib/scripts/set_nccl_env.sh",
)
NETWORKS = {"a3-highgpu-8g": TCPX, "a3-megagpu-8g": TCPXO, "a3-ultragpu-8g": GIB, "a4-highgpu-8g": GIB}


def script_of(machine_type: str) -> str:
    """A line of shell for the start of the container's command, or nothing."""
    script = _network(machine_type).script
    return f"source {script}; " if script else ""


def connect_gpus(pod: dict, machine_type: str):
    """Adds to a pod what its GPUs need to reach those of other hosts."""
    network, spec = _network(machine_type), pod["spec"]
    interfaces = [
        {"interfaceName": f"eth{n}", "network": name} for n, name in enumerate(("default", *network.networks))
    ]
    pod["metadata"]["annotations"] |= {
        "networking.gke.io/default-interface": "eth0",
        "networking.gke.io/interfaces": json.dumps(interfaces),
    }
    mounts = _mount(spec, network.host_paths)
    variables = {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64", **network.variables}
    ours = spec["containers"][0]
    ours["volumeMounts"] += mounts
    # What the job sets comes last, and wins.
    ours["env"] = [{"name": key, "value": value} for key, value in variables.items()] + ours["env"]
    if network.daemon:
        daemon = network.daemon
        paths = [f"- path: /dev/{device}\n" for device in daemon.devices]
        pod["metadata"]["annotations"][f"devices.gke.io/container.{daemon.name}"] = "".join(paths)
        mounts = [mount for mount in mounts if not mount["mountPath"].startswith("/dev/")]
        spec["initContainers"] = [
            {
                "name": daemon.name,
                "image": daemon.image,
                "restartPolicy": "Always",  # a sidecar: it ends with the container that it serves
                "command": list(daemon.command),
                "env": [{"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"}],
                "securityContext": {"capabilities": {"add": list(daemon.capabilities)}},
                "volumeMounts": mounts + _mount(spec, {"/hostsysfs": "/sys", "/hostprocsysfs": "/proc/sys"}),
            }
        ]


def _network(machine_type: str) -> Network:
    if machine_type not in NETWORKS:
        raise UserError(f"{machine_type}: several hosts of this machine are not known here; add it to {__file__}")
    return NETWORKS[machine_type]


def _mount(spec: dict, paths: dict[str, str]) -> list[dict]:
    """Adds folders of the node to a pod; returns the mounts for its containers."""
    names = {path: path.strip("/").replace("/", "-").replace("_", "-") for path in paths}
    spec["volumes"] += [{"name": names[path], "hostPath": {"path": source}} for path, source in paths.items()]
    return [{"name": name, "mountPath": path} for path, name in names.items()]
