"""A task for SkyPilot's managed jobs: GPUs of any cloud, or one TPU slice.

Sources: SkyPilot 0.14.1, sky/utils/schemas.py (fields), sky/skylet/constants.py (variables), sky/clouds/gcp.py (TPUs).
"""

import shlex

from launch.job import COORDINATOR_PORT, JobDescription
from launch.manifest import to_yaml
from launch.tpu_vm import RUNTIMES

SUFFIX, CLIENT, INSTALL = ".yaml", "sky", "pip install 'skypilot[gcp]' and see `sky check`"
GPUS = {"h100": "H100", "h100-mega": "H100-MEGA", "h200": "H200", "b200": "B200"}
INSTALL_HERE = """\
python3 -m pip install --user --quiet uv
python3 -m uv venv --quiet --allow-existing --python 3.12 ~/kosmos
python3 -m uv pip install --quiet --python ~/kosmos/bin/python '.[{extra}]'
"""


def render(job: JobDescription) -> str:
    """The task, as YAML."""
    job.require_training()
    job.require(
        job.kind != "cpu", "topology", "on SkyPilot give GPUs or TPUs; for CPU hosts use --on slurm or --on local"
    )
    job.require(job.slices == 1, "slices", "SkyPilot starts one TPU slice; for several use --on gke or --on tpu-vm")
    reservations = "SkyPilot takes reservations from gcp.specific_reservations of its own config"
    job.require(job.capacity != "reserved", "capacity", reservations)
    job.require(not job.venv, "venv", "that is for Slurm; name an image, or nothing: then this folder is installed")
    job.require_workdir_mounted()
    known = RUNTIMES if job.kind == "tpu" else GPUS
    job.require(job.place.chip.name in known, "topology", f"on SkyPilot there are {', '.join((*RUNTIMES, *GPUS))}")
    resources = _tpu(job) if job.kind == "tpu" else _gpu(job)
    resources |= {
        "use_spot": job.capacity == "spot",
        "job_recovery": {"max_restarts_on_errors": job.max_restarts, "recover_on_exit_codes": [75]},
    }
    resources |= {"image_id": f"docker:{job.image}"} if job.image else {}
    task = {"name": job.name, "num_nodes": 1 if job.kind == "tpu" else job.hosts, "resources": resources}
    task |= {"envs": dict(job.env)} if job.env else {}
    task["file_mounts"] = {path: {"source": source, "mode": "MOUNT"} for path, source in job.mounts.items()}
    if not job.image:
        task |= {"workdir": ".", "setup": INSTALL_HERE.format(extra="tpu" if job.kind == "tpu" else "cuda")}
    task["run"] = _run(job)
    return to_yaml(task)


def _tpu(job: JobDescription) -> dict:
    """All hosts of a slice are one node to SkyPilot, and each of them runs the command."""
    default = "x".join(map(str, job.place.default_shape))
    job.require(
        job.place.name == default,
        "topology",
        f"SkyPilot names the number of chips alone, and gets {job.place.chip.name}:{default}; for this shape use "
        "--on gke or --on tpu-vm",
    )
    return {
        "infra": "gcp",
        "accelerators": f"tpu-{job.place.accelerator_type}",
        "accelerator_args": {"runtime_version": RUNTIMES[job.place.chip.name]},
    }


def _gpu(job: JobDescription) -> dict:
    return {"accelerators": f"{GPUS[job.place.chip.name]}:{job.per_host}", "network_tier": "best"}


def _run(job: JobDescription) -> str:
    lines = ["cd /kosmos_jax" if job.image else 'export PATH="$HOME/kosmos/bin:$PATH"']
    words = shlex.join(job.command)
    if job.kind == "gpu":
        coordinator = f'--coordinator="$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):{COORDINATOR_PORT}"'
        first = f'--first="$(({job.per_host} * SKYPILOT_NODE_RANK))"'
        words = f"{shlex.join(job.gpu_processes)} {coordinator} {first} -- {words}"
    return "\n".join([*lines, f"exec {words}", ""])


def submit_command(job: JobDescription, path: str) -> list[str]:
    return ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", job.name, path]


def advice(job: JobDescription, path: str, output: str) -> dict[str, str]:
    """Commands for afterwards."""
    return {
        "follow": f"sky jobs logs --name {job.name}",
        "state": "sky jobs queue",
        "stop": f"sky jobs cancel --name {job.name}",
    }
