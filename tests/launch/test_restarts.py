"""The shell around a run: which status starts it again, which one does not, and when it gives up."""

import os
import subprocess

import pytest

from launch import slurm, tpu_vm
from tests.launch.cases import job


def fake(folder, name: str, script: str):
    """A program of this name, first on the PATH that `shell` gives."""
    program = folder / name
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)


def shell(script: str, folder, *arguments, **environment):
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment
    command = ["bash", "-c", script, "bash", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30)


# Ends with the next of the statuses in a file each time.
NEXT_STATUS = 'status=$(head -n 1 statuses); sed -i 1d statuses; echo "$@" >> calls; exit $status'


@pytest.mark.parametrize(
    "status, returned, queued_again",
    [(0, 0, False), (75, 0, True), (2, 2, False), (1, 0, True), (137, 0, True)],
)
def test_slurm_queues_a_job_again_unless_it_is_done_or_mistaken(status, returned, queued_again, tmp_path):
    fake(tmp_path, "srun", f"exit {status}")
    fake(tmp_path, "scontrol", 'echo "$@" > scontrol-called')
    variables = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="demo", SLURM_JOB_NODELIST="n1", SLURM_SUBMIT_DIR=str(tmp_path))
    result = shell(slurm.render(job("demo_cpu")), tmp_path, **variables)
    called = tmp_path / "scontrol-called"
    assert (result.returncode, called.exists()) == (returned, queued_again), result
    assert not queued_again or called.read_text() == "requeue 7\n"


def test_slurm_gives_up_after_max_restarts_failures_but_never_for_being_stopped(tmp_path):
    fake(tmp_path, "srun", NEXT_STATUS)
    fake(tmp_path, "scontrol", "true")
    (tmp_path / "statuses").write_text("1\n75\n75\n75\n75\n1\n9\n")
    variables = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="demo", SLURM_JOB_NODELIST="n1", SLURM_SUBMIT_DIR=str(tmp_path))
    script = slurm.render(job("demo_cpu", max_restarts=2))
    statuses = [shell(script, tmp_path, **variables).returncode for _ in range(7)]
    assert statuses == [0, 0, 0, 0, 0, 0, 9]
    assert [line.split()[2] for line in (tmp_path / "demo-7.failures").read_text().splitlines()] == ["1", "1", "9"]


def boot(tmp_path, statuses, gcsfuse="true", **changes):
    """Runs the start-up script of a TPU VM; returns the calls of docker."""
    described = job("kosmos1_v5p", mounts={f"{tmp_path}/runs": "gs://b"}, workdir=f"{tmp_path}/runs/1", **changes)
    fake(tmp_path, "docker", f'[ "$1" = rm ] && exit\n{NEXT_STATUS}')
    for name in ("gcloud", "sleep"):
        fake(tmp_path, name, f'echo "{name} $@"')
    fake(tmp_path, "gcsfuse", f'echo "gcsfuse $@"; {gcsfuse}')
    fake(tmp_path, "mountpoint", "false")
    for folder in ("log", "lib"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "calls").unlink(missing_ok=True)
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    shell(tpu_vm.boot_script(described).replace("/var/", f"{tmp_path}/"), tmp_path)
    return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


@pytest.mark.parametrize(
    "statuses, starts",
    [([0], 1), ([2], 1), ([75, 75, 75, 0], 4), ([1, 75, 1, 1, 0], 4), ([137, 0], 2)],
)
def test_a_tpu_vm_starts_again_until_it_is_done_or_has_failed_too_often(statuses, starts, tmp_path):
    assert len(boot(tmp_path, statuses, max_restarts=2)) == starts
    assert (tmp_path / "lib/kosmos-ended").exists()


def test_a_tpu_vm_that_boots_after_the_end_does_nothing(tmp_path):
    assert boot(tmp_path, [0]) and not boot(tmp_path, [0])


def test_a_tpu_vm_mounts_the_bucket_and_gives_it_to_the_container(tmp_path):
    (call,) = boot(tmp_path, [0], env={"A": "b c"})
    assert f"--volume={tmp_path}/runs:{tmp_path}/runs --env=A=b c" in call
    assert call.endswith(f"kosmos train --config configs/kosmos1.py --workdir {tmp_path}/runs/1")
    log = (tmp_path / "log/kosmos.log").read_text()
    assert f" b {tmp_path}/runs\n" in log and "configure-docker us-docker.pkg.dev" in log


def test_a_tpu_vm_does_not_train_without_its_bucket(tmp_path):
    assert not boot(tmp_path, [0], gcsfuse="false", max_restarts=2)
    assert (tmp_path / "log/kosmos.log").read_text().count("== status 1") == 3


def test_watch_asks_again_for_tpus_that_were_taken_away_and_returns_them_at_the_end(tmp_path):
    fake(tmp_path, "sleep", "true")
    fake(
        tmp_path,
        "gcloud",
        'echo "$4 $5" >> calls\n'
        'case "$4" in describe) head -n 1 states; sed -i 1d states ;; esac\n'
        'case "$*" in *ended*) [ "$(wc -l < states)" -eq 0 ] ;; esac',
    )
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nACTIVE\nSUSPENDED\nACTIVE\n")
    result = shell(tpu_vm.render(job("kosmos1_v5e")), tmp_path, "watch")
    assert result.returncode == 0, result
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == ["describe", "describe", "ssh", "describe", "delete", "create", "describe", "ssh", "ssh", "delete"]
