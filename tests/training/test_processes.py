"""Runs of several real processes, joined by gloo on this machine: the same losses as one, and they stop together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kosmos_jax.errors import UserError
from kosmos_jax.parallel import distributed
from kosmos_jax.training.trainer import EXIT_PREEMPTED

CONFIG = str(Path(__file__).with_name("tiny_run.py"))
DEVICES = 4


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(workdir, processes, *overrides):
    """Starts `kosmos train` in so many processes with four devices in all."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES // processes), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "kosmos_jax.cli", "train", "--config", CONFIG, "--workdir", str(workdir)]
    words += [f"--config.{override}" for override in overrides]

    def start(i):
        flags = ["--coordinator", address, "--processes", str(processes), "--process-id", str(i)]
        log = (workdir.parent / f"{workdir.name}.{i}.log").open("w")
        return subprocess.Popen(words + (flags if processes > 1 else []), env=environment, stdout=log, stderr=log)

    return [start(i) for i in range(processes)]


def wait(started, seconds=400):
    return [process.wait(timeout=seconds) for process in started]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for_step(workdir, step, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (workdir / "metrics.jsonl").exists() and max(losses(workdir), default=0) >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached; see {workdir}.*.log")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("processes") / "one"
    workdir.mkdir()
    assert wait(run(workdir, 1, "mesh.fsdp=2", "mesh.data=2")) == [0]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, mesh",
    [(2, ("mesh.fsdp=2", "mesh.data=2")), (4, ("mesh.fsdp=4",))],
)
def test_several_processes_learn_what_one_learns(one_process, tmp_path, processes, mesh):
    workdir = tmp_path / "several"
    workdir.mkdir()
    assert wait(run(workdir, processes, *mesh)) == [0] * processes
    one, several = losses(one_process), losses(workdir)
    assert one.keys() == several.keys() and len(one) == 24
    worst = max(abs(one[step] - several[step]) for step in one)
    print(f"{processes} processes: losses differ by at most {worst:.1e}")
    np.testing.assert_allclose(list(several.values()), list(one.values()), rtol=2e-5)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step_and_another_mesh_goes_on(one_process, tmp_path):
    workdir = tmp_path / "stopped"
    workdir.mkdir()
    started = run(workdir, 2, "mesh.fsdp=4", "training.checkpoint_every=100")
    wait_for_step(workdir, 5)
    started[1].send_signal(signal.SIGTERM)
    assert wait(started) == [EXIT_PREEMPTED] * 2
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert len(saved) == 1 and 5 <= saved[0] < 24
    assert wait(run(workdir, 1, "mesh.fsdp=1", "mesh.data=4")) == [0]
    np.testing.assert_allclose(list(losses(workdir).values()), list(losses(one_process).values()), rtol=2e-5)


@pytest.mark.slow
def test_when_one_dies_the_others_end(tmp_path):
    workdir = tmp_path / "killed"
    workdir.mkdir()
    started = run(workdir, 2, "mesh.fsdp=4", "training.steps=100000")
    wait_for_step(workdir, 5)
    started[1].kill()
    begin = time.monotonic()
    assert started[0].wait(timeout=3 * distributed.HEARTBEAT_SECONDS) != 0
    print(f"the other ended after {time.monotonic() - begin:.0f} s")


COMPLETE = dict(zip(distributed.SLURM, ("7", "n[1-2]", "2", "1", "0"), strict=True))


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, ""),
        (COMPLETE, "Slurm"),
        (COMPLETE | {"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, ""),  # in a shell of salloc or sbatch, without srun
        ({k: v for k, v in COMPLETE.items() if k != "SLURM_STEP_NODELIST"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU"),
    ],
)
def test_what_counts_as_a_job_of_several_processes(environment, expected):
    assert distributed.cluster(environment) == expected


@pytest.mark.parametrize("flags", [("h:1", 2, -1), ("", 2, 0), ("h", 2, 0), ("h:1", 2, 2)])
def test_half_a_description_of_the_processes_is_refused(flags):
    with pytest.raises(UserError, match="--coordinator"):
        distributed.start(*flags)
