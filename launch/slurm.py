"""An sbatch script: one process for each GPU, queued again when it was stopped or a node died.

What Slurm does by itself (man sbatch): --signal=TERM@S reaches the processes of the step S seconds before the time
limit, and not the script's shell, which then sees their status. scancel signals the shell too, which ends at once, so
that a cancelled job is not queued again. A job whose node died is queued again because of --requeue.
"""

import re
import shlex
from pathlib import PurePosixPath

from launch.job import JobDescription
from launch.restarts import count_failure

SUFFIX, CLIENT = ".sbatch", "sbatch"
INSTALL = "run this on a login node of the cluster, or install slurm-client there"
# What srun waits for the other processes once one has ended: each may still be at work on its part of a checkpoint.
WAIT_SECONDS = 120

SCRIPT = """\
#!/bin/bash
{directives}

# One start of the job; Slurm runs this script again for the next one.
echo "== start $((${{SLURM_RESTART_COUNT:-0}} + 1)) of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date -Is)"
{address}failures="$SLURM_SUBMIT_DIR/$SLURM_JOB_NAME-$SLURM_JOB_ID.failures"
{count_failure}{setup}
# JAX finds coordinator, count and rank in srun's variables. A process takes the GPU of its local rank, so that it has
# to see all of them, and its threads may use every core. The others are not killed when one ends: they may be saving.
srun {options} \\
    {command}
status=$?

case $status in
    0) {done} ;;
    75) echo "== stopped and saved; resumes in the next start"; scontrol requeue "$SLURM_JOB_ID" ;;
    2) echo "== see the message above: another start would end in the same way"; exit 2 ;;
    *)
        count=$(count_failure $status)
        echo "== status $status, failure $count of {allowed} without a new checkpoint before the job gives up"
        [ "$count" -ge {allowed} ] && exit $status
        scontrol requeue "$SLURM_JOB_ID"
        ;;
esac
"""

# What comes of status 0. A server ends with it after SIGTERM alone: its time is up.
DONE = {
    "train": 'echo "== all steps done"',
    "serve": 'echo "== stopped after the requests that were there"; scontrol requeue "$SLURM_JOB_ID"',
}
# The script and process 0 run on the first node.
ADDRESS = 'echo "== the server, once it is ready: http://$(hostname):{port}"\n'


def render(job: JobDescription) -> str:
    """The script for `sbatch`."""
    job.require(job.kind != "tpu", "topology", "Slurm starts GPU and CPU hosts; for TPUs use --on gke or --on tpu-vm")
    job.require(job.venv or job.image, "venv", "name the shared folder with kosmos in it, or an image (needs Pyxis)")
    job.require(
        job.capacity != "spot", "capacity", "on Slurm, spot is a partition or a QOS: slurm=Slurm(partition=...)"
    )
    job.require(job.capacity != "reserved" or job.reservation, "reservation", "name it, as `scontrol show res` does")
    directives = {
        "job-name": job.name,
        "nodes": job.hosts,
        "ntasks-per-node": job.per_host,
        "gres": f"gpu:{job.per_host}" if job.kind == "gpu" else "",
        "mem": "0",  # all of the node's
        "time": job.slurm.time,
        "partition": job.slurm.partition,
        "account": job.slurm.account,
        "qos": job.slurm.qos,
        "reservation": job.reservation,
        "signal": f"TERM@{job.grace_seconds}",
        "output": "%x-%j.log",
        "open-mode": "append",
    }
    for value in directives.values():
        job.require(not re.search(r"\s", str(value)), "slurm", f"{value!r} has spaces, which end an option of sbatch")
    options = ["--kill-on-bad-exit=0", f"--wait={WAIT_SECONDS}", "--cpu-bind=none"]
    if job.kind == "gpu":
        options += [f"--gres=gpu:{job.per_host}", "--gpu-bind=none"]
    if job.venv:
        job.require(not job.mounts, "mounts", "for an image alone; with a venv write the paths of the hosts")
    else:
        job.require(all(host.startswith("/") for host in job.mounts.values()), "mounts", "on Slurm: paths of the hosts")
        job.require_workdir_mounted()
        mounts = ",".join(f"{host}:{path}" for path, host in job.mounts.items())
        options += [f"--container-image={job.image}", f"--container-mounts={mounts}"]
    lines = [f"#SBATCH --{key}={value}" for key, value in directives.items() if value]
    return SCRIPT.format(
        directives="\n".join([*lines, "#SBATCH --exclusive", "#SBATCH --requeue"]),
        count_failure=count_failure(_host_workdir(job)),
        setup="".join(f"{line}\n" for line in (*job.slurm.setup, *job.exports)),
        options=shlex.join(options),
        command=shlex.join(job.command),
        allowed=job.max_restarts + 1,
        done=DONE[job.verb],
        address=ADDRESS.format(port=job.serve.port) if job.verb == "serve" else "",
    )


def _host_workdir(job: JobDescription) -> str:
    """The workdir outside the container, where the script runs."""
    workdir = PurePosixPath(job.workdir)
    for path in sorted(job.mounts, key=len, reverse=True):
        if workdir.is_relative_to(path):
            return str(job.mounts[path] / workdir.relative_to(path))
    return job.workdir


def submit_command(job: JobDescription, path: str) -> list[str]:
    return ["sbatch", "--parsable", path]


def advice(job: JobDescription, path: str, output: str) -> dict[str, str]:
    """Commands for afterwards; `output` is what sbatch printed, the job's number."""
    number = output.strip().partition(";")[0]
    return {"follow": f"tail -F {job.name}-{number}.log", "state": f"squeue -j {number}", "stop": f"scancel {number}"}
