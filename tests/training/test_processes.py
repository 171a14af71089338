"""Runs of several real processes, joined by gloo on this machine: the same losses as one, and they end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kosmos_jax import checkpoint
from kosmos_jax.errors import EXIT_HUNG, EXIT_PREEMPTED, UserError
from kosmos_jax.parallel import distributed
from kosmos_jax.training import ledger
from launch.local import free_port

CONFIG = str(Path(__file__).with_name("tiny_run.py"))
STEPS, DEVICES = 16, 8
FOUR, TWO, ONE = ("mesh.data=4", "mesh.fsdp=2"), ("mesh.data=2", "mesh.fsdp=4"), ("mesh.data=1", "mesh.fsdp=1")
EVALUATED = "evaluation.tasks=('perplexity','caption')", "evaluation.examples=6", "training.eval_every=16"


class Runs:
    """Starts `kosmos train` in several processes; all runs find the same index of the data and the same programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started = []

    def start(self, name: str, processes: int, mesh, devices=DEVICES, **training):
        """Processes of the run `name`, with so many devices in all; `wait` gives their statuses."""
        workdir = self.folder / name
        workdir.mkdir(exist_ok=True)
        training = dict(steps=STEPS, log_every=4) | training
        overrides = [f"data.cache={self.folder}/cache", *mesh, *(f"training.{k}={v}" for k, v in training.items())]
        command = [sys.executable, "-m", "kosmos_jax.cli", "train", "--config", CONFIG, "--workdir", str(workdir)]
        command += [f"--config.{override}" for override in overrides]
        environment = os.environ | {
            "JAX_NUM_CPU_DEVICES": str(devices // processes),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what is claimed here holds without them too, and compiles sooner
        }
        address = f"127.0.0.1:{free_port()}"
        for i in range(processes):
            flags = ["--coordinator", address, "--processes", str(processes), "--process-id", str(i)]
            with self.log(name, i).open("w") as log:
                words = command + flags if processes > 1 else command
                self.started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        return self.started[-processes:]

    def log(self, name: str, process: int) -> Path:
        return self.folder / f"{name}.{process}.log"

    def losses(self, name: str) -> dict[int, float]:
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    def measured(self, name: str) -> dict[str, float]:
        """What the tasks of the evaluation measured."""
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return {
            key: value for line in lines for key, value in line.items() if key.startswith(("perplexity", "caption"))
        }

    def wait_for_step(self, name: str, step: int, started, seconds=300):
        """Returns once a step is done and a checkpoint is there."""
        end = time.monotonic() + seconds
        workdir = self.folder / name
        while time.monotonic() < end and all(process.poll() is None for process in started):
            done = (workdir / "metrics.jsonl").exists() and max(self.losses(name), default=0) >= step
            if done and any(path.name.isdigit() for path in (workdir / "checkpoints").iterdir()):
                return
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached: {self.log(name, 0).read_text()[-2000:]}")


def wait(started, seconds=300):
    return [process.wait(timeout=seconds) for process in started]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("processes"))
    yield runs
    for process in runs.started:
        process.kill()  # when a test failed; of one that has ended nothing happens


@pytest.fixture(scope="module")
def one_process(runs):
    """The losses of one process with one device."""
    assert wait(runs.start("one", 1, (*ONE, *EVALUATED), devices=1)) == [0]
    return runs.losses("one")


@pytest.fixture(scope="module")
def two_processes(runs):
    """A run of two processes with two devices each that nobody disturbed."""
    assert wait(runs.start("two", 2, ("mesh.data=2", "mesh.fsdp=2", *EVALUATED), devices=4)) == [0, 0]
    return "two"


def assert_same_losses(several, one):
    """The same up to float32 rounding, so of the same data too: another batch is off by a hundred times as much."""
    assert several.keys() == one.keys() and len(one) == STEPS
    print(f"losses differ by at most {max(abs(one[step] - several[step]) for step in one):.1e}")
    np.testing.assert_allclose([several[step] for step in one], list(one.values()), rtol=2e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(runs, one_process, two_processes):
    assert_same_losses(runs.losses(two_processes), one_process)
    one, two = (runs.measured(name) for name in ("one", two_processes))
    assert one.keys() == two.keys() == {"perplexity/perplexity", "caption/accuracy"}
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-3)


@pytest.mark.slow
def test_a_run_moves_from_four_processes_to_two_to_one(runs, one_process):
    """A mesh of 4 x 2 devices, then 2 x 4, then one device; SIGTERM to one process stops all after the same step."""
    stopped_after = []
    for processes, mesh, step in ((4, FOUR, 4), (2, TWO, 9)):
        started = runs.start("moving", processes, mesh, checkpoint_every=100 if stopped_after else 4)
        runs.wait_for_step("moving", step, started)
        started[-1].send_signal(signal.SIGTERM)
        assert wait(started) == [EXIT_PREEMPTED] * processes
        stopped_after.append(max(int(path.name) for path in (runs.folder / "moving/checkpoints").iterdir()))
        assert step <= stopped_after[-1] < STEPS
        assert f"after step {stopped_after[-1]}, all saved" in runs.log("moving", 0).read_text()
    assert wait(runs.start("moving", 1, ONE, devices=1)) == [0]
    assert_same_losses(runs.losses("moving"), one_process)
    attempts = ledger.read(runs.folder / "moving")
    assert [attempt.ended for attempt in attempts] == ["preempted", "preempted", "done"]
    assert [attempt.first_step for attempt in attempts] == [0, *stopped_after]
    assert sum(attempt.lost for attempt in attempts) == 0


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_ends_all_and_the_next_start_ends_bit_for_bit_as_the_unbroken_run(
    runs, two_processes
):
    mesh = "mesh.data=2", "mesh.fsdp=2"
    started = runs.start("broken", 2, mesh, devices=4)
    runs.wait_for_step("broken", 6, started)
    started[1].kill()
    begin = time.monotonic()
    assert started[0].wait(timeout=3 * distributed.HEARTBEAT_SECONDS) not in (0, EXIT_PREEMPTED)
    print(f"the other ended after {time.monotonic() - begin:.0f} s")
    assert re.search("another process of the job ended|another task died", runs.log("broken", 0).read_text())

    started = runs.start("broken", 2, mesh, devices=4, hang_seconds=20)
    runs.wait_for_step("broken", 10, started)
    started[1].send_signal(signal.SIGSTOP)
    assert started[0].wait(timeout=60) == EXIT_HUNG
    started[1].kill()
    log = runs.log("broken", 0).read_text()
    assert re.search(r"process 0 HANGS: nothing was finished since \w+ \(step \d+\)", log)
    assert "Current thread" in log and "trainer.py" in log, "the stacks are missing"

    assert wait(runs.start("broken", 2, mesh, devices=4)) == [0, 0]
    assert runs.losses("broken") == runs.losses(two_processes)
    weights = [checkpoint.restore(runs.folder / name).params for name in ("broken", two_processes)]
    for path, array in weights[0].items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(weights[1][path]), err_msg=path)
    ended = [attempt.ended for attempt in ledger.read(runs.folder / "broken")]
    assert ended[0] in ("error", "killed") and ended[1:] == ["killed", "done"]  # JAX may end it before we do


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
