import argparse
import os
import subprocess
import sys
from types import ModuleType

import pytest

from kosmos_jax.errors import UserError
from launch.command import add_arguments, launch
from tests.launch.cases import ROOT, golden


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def job_file(name: str) -> str:
    return str(ROOT / f"launch/jobs/{name}.py")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An empty folder as the only PATH, and as the current folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planner(monkeypatch):
    """Stands in for kosmos_jax.planning.command: `asked` holds the questions, `status` the answer."""
    module = ModuleType("kosmos_jax.planning.command")
    module.asked, module.status = [], 0
    module.plan = lambda args: module.asked.append(args) or module.status
    monkeypatch.setitem(sys.modules, "kosmos_jax.planning", ModuleType("kosmos_jax.planning"))
    monkeypatch.setitem(sys.modules, "kosmos_jax.planning.command", module)
    return module


def test_a_dry_run_prints_and_needs_neither_client_nor_planner(programs, capsys):
    assert launch(arguments("--job", job_file("kosmos1_v5p"), "--on", "gke", "--dry-run")) == 0
    assert capsys.readouterr().out == golden("kosmos1_v5p", "", "gke").read_text()
    assert not list(programs.iterdir())


def test_a_dry_run_can_write_to_a_file(programs, capsys):
    launch(arguments("--job", job_file("demo_cpu"), "--on", "slurm", "--dry-run", "--out", "a/b.sbatch"))
    assert (programs / "a/b.sbatch").read_text() == golden("demo_cpu", "", "slurm").read_text()
    assert capsys.readouterr().out == "wrote a/b.sbatch\n"


@pytest.mark.parametrize(
    "name, target, client",
    [
        ("demo_cpu", "slurm", "sbatch"),
        ("kosmos1_v5p", "gke", "kubectl"),
        ("kosmos1_v5p", "tpu-vm", "gcloud"),
        ("kosmos1_v5p", "skypilot", "sky"),
    ],
)
def test_a_client_that_is_missing_is_named_with_how_to_get_it(name, target, client, programs, planner):
    with pytest.raises(UserError, match=f"^{client} is not installed: .*--dry-run needs nothing"):
        launch(arguments("--job", job_file(name), "--on", target))


def client(folder, name, script):
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_submitted_job_says_how_to_follow_and_to_stop_it(programs, capsys):
    client(programs, "sbatch", 'echo "42;cluster"')
    assert launch(arguments("--job", job_file("demo_cpu"), "--on", "slurm")) == 0
    assert capsys.readouterr().out == (
        "wrote out/launch/demo-cpu.slurm.sbatch\n"
        "running: sbatch --parsable out/launch/demo-cpu.slurm.sbatch\n"
        "42;cluster\n"
        "follow:         tail -F demo-cpu-42.log\n"
        "state:          squeue -j 42\n"
        "stop:           scancel 42\n"
    )


def test_a_client_that_refuses_is_an_error(programs):
    client(programs, "sbatch", "exit 3")
    with pytest.raises(UserError, match="sbatch ended with status 3"):
        launch(arguments("--job", job_file("demo_cpu"), "--on", "slurm"))


def test_the_planner_is_asked_before_chips_are(programs, planner):
    client(programs, "kubectl", "echo created")
    launch(arguments("--job", job_file("kosmos1_v5e"), "--on", "gke"))
    (asked,) = planner.asked
    assert (asked.config, asked.topology, asked.slices) == ("configs/kosmos1.py", "v5e:16x16", 2)
    assert asked.overrides == [f"--config.{key}" for key in ("data.batch_rows=512", "mesh.data=8", "mesh.fsdp=64")]


def test_a_job_that_does_not_fit_is_not_submitted(programs, planner):
    client(programs, "kubectl", ": > submitted")
    planner.status = 1
    with pytest.raises(UserError, match="does not fit v5p:4x4x4. To see what would: kosmos plan --fit"):
        launch(arguments("--job", job_file("kosmos1_v5p"), "--on", "gke"))
    assert not (programs / "submitted").exists()
    launch(arguments("--job", job_file("kosmos1_v5p"), "--on", "gke", "--no-plan"))
    assert (programs / "submitted").exists()


def test_on_local_the_job_takes_the_place_of_the_command(tmp_path):
    file = tmp_path / "job.py"
    file.write_text(
        "from launch.job import JobDescription\n"
        "def get_job():\n"
        f"    return JobDescription(name='a', config='no.py', topology='cpu:2x1', workdir={str(tmp_path)!r})\n"
    )
    command = [sys.executable, "-m", "launch.command", "--job", str(file), "--on", "local", "--no-plan"]
    command += ["--out", str(tmp_path / "a.sh")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "[launch.local] process" in result.stdout and "[0] " in result.stdout
