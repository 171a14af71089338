import os
import subprocess
import sys
from types import ModuleType

import pytest

from kosmos_jax.cli import main, parse
from kosmos_jax.errors import UserError
from launch import command
from tests.launch.cases import ROOT, golden


def launch(*words: str) -> int:
    return command.launch(parse(["launch", *words]), parse)


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
    assert launch("--job", job_file("kosmos1_v5p"), "--on", "gke", "--dry-run") == 0
    assert capsys.readouterr().out == golden("kosmos1_v5p", "", "gke").read_text()
    assert not list(programs.iterdir())


def test_a_dry_run_can_write_to_a_file(programs, capsys):
    launch("--job", job_file("demo_cpu"), "--on", "slurm", "--dry-run", "--out", "a/b.sbatch")
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
        launch("--job", job_file(name), "--on", target)


def client(folder, name, script):
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_submitted_job_says_how_to_follow_and_to_stop_it(programs, capsys):
    client(programs, "sbatch", 'echo "42;cluster"')
    assert launch("--job", job_file("demo_cpu"), "--on", "slurm") == 0
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
        launch("--job", job_file("demo_cpu"), "--on", "slurm")


def test_the_planner_is_asked_before_chips_are(programs, planner):
    client(programs, "kubectl", "echo created")
    launch("--job", job_file("kosmos1_v5e"), "--on", "gke")
    (asked,) = planner.asked
    assert (asked.config, asked.topology, asked.slices) == ("configs/kosmos1.py", "v5e:16x16", 2)
    assert asked.overrides == [f"--config.{key}" for key in ("data.batch_rows=512", "mesh.data=8", "mesh.fsdp=64")]


def test_a_job_that_does_not_fit_is_not_submitted(programs, planner):
    client(programs, "kubectl", ": > submitted")
    planner.status = 1
    with pytest.raises(UserError, match="does not fit v5p:4x4x4. To see what would: kosmos plan --fit"):
        launch("--job", job_file("kosmos1_v5p"), "--on", "gke")
    assert not (programs / "submitted").exists()
    launch("--job", job_file("kosmos1_v5p"), "--on", "gke", "--no-plan")
    assert (programs / "submitted").exists()


def test_on_local_the_job_takes_the_place_of_the_command(tmp_path):
    file = tmp_path / "job.py"
    file.write_text(
        "from launch.job import JobDescription\n"
        "def get_job():\n"
        f"    return JobDescription(name='a', config='no.py', topology='cpu:2x1', workdir={str(tmp_path)!r})\n"
    )
    words = [sys.executable, "-m", "kosmos_jax.cli", "launch", "--job", str(file), "--on", "local", "--no-plan"]
    words += ["--out", str(tmp_path / "a.sh")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "[launch.local] process" in result.stdout and "[0] " in result.stdout


def test_a_server_is_not_planned_as_a_training_run_and_says_how_to_ask_it(programs, planner, capsys):
    client(programs, "kubectl", "echo created")
    assert launch("--serve", "--job", job_file("kosmos1_serve"), "--on", "gke") == 0
    assert not planner.asked
    said = capsys.readouterr().out
    assert "running: kubectl apply -f out/launch/kosmos1-serve.gke.yaml\n" in said
    assert "kubectl create secret generic --namespace default kosmos1-serve --from-literal=KOSMOS_API_KEY=..." in said
    assert "kubectl port-forward --namespace default service/kosmos1-serve 8000" in said


def serve_with(folder, *flags: str, topology: str = "cpu:2x1") -> list[str]:
    """Words that launch a server with these flags."""
    file = folder / "job.py"
    file.write_text(
        "from launch.job import JobDescription, Serve\n"
        "def get_job():\n"
        f"    return JobDescription(name='a', config='c.py', topology={topology!r}, workdir='/w', venv='/v', "
        f"serve=Serve(flags={flags!r}))\n"
    )
    return ["launch", "--serve", "--job", str(file), "--on", "slurm", "--dry-run"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "a-serve: flags of serve: without a mesh one of 2 devices does all the work"),
        (["--config.mesh.tensor=3"], "mesh data=-1, fsdp=1, tensor=3, context=1 does not fit 2 devices"),
        (["--config.mesh.tensor=two"], "--config.mesh.tensor=two: a size is a whole number"),
        (["--config.model.text.layers=2"], "only --config.mesh.AXIS=N means something here"),
        (["--config.mesh.tensor=2", "--slots=256"], "--slots 256: write LENGTHxSLOTS"),
        (["--config.mesh.tensor=2", "--api-key=s"], "a key has no place in a file"),
    ],
)
def test_flags_that_every_machine_would_refuse_are_refused_before(flags, message, tmp_path, capsys):
    assert main(serve_with(tmp_path, *flags)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("kosmos launch: error: ") and message in said.err and not said.out


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--slot=256x8", "unknown flag --slot; did you mean --slots?"),
        ("--queue=many", "invalid int value: 'many'"),
        ("--int8=heads", "invalid choice: 'heads'"),
    ],
)
def test_a_mistyped_flag_is_told_as_kosmos_serve_tells_it(flag, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(serve_with(tmp_path, "--config.mesh.tensor=2", flag))
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_all_flags_reach_the_server(tmp_path, capsys):
    flags = "--config.mesh.tensor=2 --slots=256x8 --queue=9 --name=k --template=instruction --int8=weights --int8=cache"
    assert main(serve_with(tmp_path, *flags.split())) == 0
    assert f"serve --checkpoint /w --host 0.0.0.0 --port 8000 {flags}\n" in capsys.readouterr().out
