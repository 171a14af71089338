"""The shell around a run: what reaches it, which status starts it again, and when it gives up."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from launch import slurm, tpu_vm
from tests.launch.cases import job, target_module


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


@pytest.mark.parametrize("status, returned, queued_again", [(0, 0, True), (2, 2, False), (1, 0, True)])
def test_slurm_starts_a_server_again_when_its_time_is_up(status, returned, queued_again, tmp_path):
    fake(tmp_path, "srun", f"exit {status}")
    fake(tmp_path, "scontrol", 'echo "$@" > scontrol-called')
    variables = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="demo", SLURM_JOB_NODELIST="n1", SLURM_SUBMIT_DIR=str(tmp_path))
    result = shell(slurm.render(job("demo_cpu").serving()), tmp_path, KOSMOS_API_KEY="secret", **variables)
    assert (result.returncode, (tmp_path / "scontrol-called").exists()) == (returned, queued_again), result


@pytest.mark.parametrize("target", ["slurm", "local"])
def test_a_server_does_not_start_without_a_key(target, tmp_path):
    result = shell(target_module(target).render(job("demo_cpu").serving()), tmp_path, KOSMOS_API_KEY="")
    assert result.returncode and "KOSMOS_API_KEY: export it before" in result.stderr


def test_the_hosts_of_a_server_are_numbered_by_the_leader_worker_set(tmp_path):
    fake(tmp_path, "python", 'echo "$@"')
    described = job("kosmos1_serve", "h100:2x8").serving()
    manifest = next(yaml.safe_load_all(target_module("gke").render(described)))
    container = manifest["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]
    line = container["command"][2].replace("$$", "$")  # as Kubernetes reads it
    said = shell(line, tmp_path, LWS_LEADER_ADDRESS="a-0.a-0.default", LWS_WORKER_INDEX="1").stdout
    counts = "--here=8 --total=16 --one-gpu-each --coordinator=a-0.a-0.default:8476 --first=8"
    assert said == f"-m launch.local {counts} -- {' '.join(described.command)}\n"


def test_slurm_gives_up_after_max_restarts_failures_but_never_for_being_stopped(tmp_path):
    fake(tmp_path, "srun", NEXT_STATUS)
    fake(tmp_path, "scontrol", "true")
    (tmp_path / "statuses").write_text("1\n75\n75\n75\n75\n1\n9\n")
    variables = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="demo", SLURM_JOB_NODELIST="n1", SLURM_SUBMIT_DIR=str(tmp_path))
    script = slurm.render(job("demo_cpu", max_restarts=2))
    statuses = [shell(script, tmp_path, **variables).returncode for _ in range(7)]
    assert statuses == [0, 0, 0, 0, 0, 0, 9]
    assert [line.split()[2] for line in (tmp_path / "demo-7.failures").read_text().splitlines()] == ["1", "1", "9"]


def test_failures_on_slurm_count_since_the_newest_checkpoint(tmp_path):
    # A folder that was set aside, or whose writing did not come to its end, is no checkpoint.
    fake(tmp_path, "scontrol", "true")
    variables = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="demo", SLURM_JOB_NODELIST="n1", SLURM_SUBMIT_DIR=str(tmp_path))
    script = slurm.render(job("demo_cpu", max_restarts=1, workdir=f"{tmp_path}/a b"))
    statuses = []
    for made in ["9/commit_success.txt", "10/commit_success.txt", "unreadable-11/commit_success.txt", "12/params"]:
        fake(tmp_path, "srun", f"mkdir -p '{tmp_path}/a b/checkpoints/{made}'; exit 1")
        statuses.append(shell(script, tmp_path, **variables).returncode)
    assert statuses == [0, 0, 1, 1]


def test_with_an_image_slurm_looks_for_checkpoints_where_the_mount_comes_from():
    described = job("demo_cpu", venv="", image="i", mounts={"/runs": "/a", "/runs/b": "/c"}, workdir="/runs/b/1")
    assert "cd /c/1/checkpoints" in slurm.render(described)


def boot(tmp_path, statuses, gcsfuse="true", run="true", pull="true", **changes):
    """Runs the start-up script of a TPU VM whose programs are fakes; returns the calls of `docker run`."""
    described = job("kosmos1_v5p", mounts={f"{tmp_path}/runs": "gs://b"}, workdir=f"{tmp_path}/runs/1", **changes)
    fake(
        tmp_path,
        "docker",
        'case "$1" in\n'
        "    login) cat > password ;;\n"
        f"    pull) {pull} && touch pulled ;;\n"
        "    image) [ -e pulled ] ;;\n"
        f"    run) {run}; {NEXT_STATUS} ;;\n"
        "esac",
    )
    fake(tmp_path, "sleep", 'echo "sleep $@"; echo "$@" >> pauses')
    fake(tmp_path, "curl", """echo '{"access_token":"ya29.secret","expires_in":3599,"token_type":"Bearer"}'""")
    if gcsfuse:
        fake(tmp_path, "gcsfuse", f'echo "gcsfuse $@"; {gcsfuse}')
    fake(tmp_path, "mountpoint", "false")
    fake(tmp_path, "umount", "exit 32")
    for folder in ("log", "lib", "apt/sources.list.d"):
        (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    for name in ("calls", "pauses"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    script = tpu_vm.boot_script(described).replace("/var/", f"{tmp_path}/").replace("/etc/", f"{tmp_path}/")
    shell(script.replace("/usr/share/keyrings/", f"{tmp_path}/"), tmp_path)
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


def test_a_tpu_vm_may_fail_for_weeks_as_long_as_it_makes_checkpoints(tmp_path):
    checkpoints = f"{tmp_path}/runs/1/checkpoints"
    advance = f"mkdir -p {checkpoints}/$(ls {checkpoints} | wc -l)/commit_success.txt"
    assert len(boot(tmp_path, [1, 1, 1, 0], run=advance, max_restarts=1)) == 4
    (tmp_path / "lib/kosmos-ended").unlink()
    (tmp_path / "lib/kosmos-failures").unlink()
    assert len(boot(tmp_path, [1, 1, 1, 0], max_restarts=1)) == 2


def test_a_tpu_vm_mounts_the_bucket_and_gives_it_to_the_container(tmp_path):
    boot(tmp_path, [0], env={"A": "b c\nd"})
    (call,) = (tmp_path / "calls").read_text().split("run --name kosmos")[1:]
    assert f"--volume={tmp_path}/runs:{tmp_path}/runs --env=A=b c\nd us-docker" in call
    assert call.endswith(f"kosmos train --config configs/kosmos1.py --workdir {tmp_path}/runs/1\n")
    assert f" b {tmp_path}/runs\n" in (tmp_path / "log/kosmos.log").read_text()


# Fails as often as the file has lines.
TRY_AGAIN = "[ ! -s failing ] || { sed -i 1d failing; false; }"


@pytest.mark.parametrize("what", ["gcsfuse", "pull", "apt"])
def test_what_fails_before_the_run_is_tried_again_and_counts_for_nothing(what, tmp_path):
    (tmp_path / "failing").write_text("x\n" * 7)
    if what == "apt":
        if shutil.which("gcsfuse"):
            pytest.skip("gcsfuse is installed, so that nothing would be")
        fake(tmp_path, "lsb_release", "echo jammy")
        put = f"printf '#!/bin/bash\\n' > {tmp_path}/gcsfuse; chmod +x {tmp_path}/gcsfuse"
        install = f'case "$*" in *install*) {put} ;; esac'
        fake(tmp_path, "apt-get", f'echo "$@" >> apt-calls; {TRY_AGAIN} || exit 100; {install}')
        broken = dict(gcsfuse="")
    else:
        broken = {what: TRY_AGAIN}
    assert len(boot(tmp_path, [0], max_restarts=0, **broken)) == 1
    assert not (tmp_path / "lib/kosmos-failures").exists()
    assert [int(line) for line in (tmp_path / "pauses").read_text().split()] == [20, 40, 80, 160, 300, 300, 300]
    if what == "apt":
        assert "-o DPkg::Lock::Timeout=600 update\n" in (tmp_path / "apt-calls").read_text()


def test_a_tpu_vm_gives_up_when_the_container_does_not_start_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_vm, "SET_UPS", 9)
    assert boot(tmp_path, [], pull="false") == []
    assert (tmp_path / "lib/kosmos-ended").exists()
    assert len((tmp_path / "pauses").read_text().split()) == 8
    assert "gives up: see above why the container did not start 9 times" in (tmp_path / "log/kosmos.log").read_text()


def test_a_container_that_started_in_between_begins_the_count_of_set_ups_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_vm, "SET_UPS", 3)
    assert len(boot(tmp_path, [125, 125, 75, 125, 125, 0])) == 6


def test_a_tpu_vm_pulls_from_a_private_registry_with_its_own_token(tmp_path):
    boot(tmp_path, [75, 0], pull="echo pull >> pulls")
    assert (tmp_path / "password").read_text() == "ya29.secret\n"
    assert (tmp_path / "pulls").read_text() == "pull\n"  # once, so that all starts run the same image
    assert "log_in" not in tpu_vm.boot_script(job("kosmos1_v5p", image="ghcr.io/me/kosmos:1"))


def test_no_line_of_an_environment_ends_the_script_that_goes_to_the_machines(tmp_path):
    fake(tmp_path, "gcloud", 'last=${@: -1}; cp "${last#*startup-script=}" boot')
    described = job("kosmos1_v5e", env={"A": "x\nBOOT\ntouch escaped\nBOOT_\ntouch escaped"})
    result = shell(tpu_vm.render(described), tmp_path, "create")
    assert result.returncode == 0 and not (tmp_path / "escaped").exists(), result
    assert (tmp_path / "boot").read_text() == tpu_vm.boot_script(described)


def test_watch_asks_again_for_tpus_that_were_taken_away_and_returns_them_at_the_end(tmp_path):
    fake(tmp_path, "sleep", "true")
    fake(
        tmp_path,
        "gcloud",
        '[ "$1" = alpha ] && shift; echo "$4 $5" >> calls\n'
        'case "$4" in describe) head -n 1 states; sed -i 1d states ;; esac\n'
        'case "$*" in *ended*) [ "$(wc -l < states)" -eq 0 ] ;; esac',
    )
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nACTIVE\nSUSPENDED\nACTIVE\n")
    result = shell(tpu_vm.render(job("kosmos1_v5e")), tmp_path, "watch")
    assert result.returncode == 0, result
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == ["describe", "describe", "ssh", "describe", "delete", "create", "describe", "ssh", "ssh", "delete"]


NASTY = """a 'b' "c" $HOME $(id) $$ `id` \\ {x} %s ; & # ! ü
BOOT
EOF -- """


def script_of(target: str, described) -> str:
    """What a shell runs, in the end: of the scheduler, of the machine, or of the container."""
    if target == "tpu-vm":
        return tpu_vm.boot_script(described).replace("exec >> /var/log/kosmos.log 2>&1", "").replace("/var/", "./")
    text = target_module(target).render(described)
    if target == "gke":
        (replicated,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
        _, _, script = replicated["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
        return script.replace("$$", "$")  # as Kubernetes does
    return yaml.safe_load(text)["run"].replace("cd /kosmos_jax", "") if target == "skypilot" else text


@pytest.mark.parametrize(
    "target, name, program",
    [
        ("slurm", "demo_cpu", "srun"),
        ("local", "demo_cpu", "python"),
        ("gke", "kosmos1_h100", "python"),
        ("skypilot", "kosmos1_h100", "python"),
        ("tpu-vm", "kosmos1_v5p", "docker"),
    ],
)
def test_what_stands_in_a_description_reaches_the_process_as_it_stands_there(target, name, program, tmp_path):
    described = job(name, overrides={"x": NASTY}, env={"A": NASTY})
    fake(tmp_path, program, """printf '%s\\0' "$@" > words; printf %s "$A" > variable""")
    for other in ("gcsfuse", "mountpoint"):
        fake(tmp_path, other, "true")
    script = script_of(target, described).replace(sys.executable, "python")
    result = shell(script, tmp_path, SLURM_SUBMIT_DIR=str(tmp_path))
    words = (tmp_path / "words").read_text().split("\0")
    assert f"--config.x={NASTY}" in words, result
    if target in ("slurm", "local"):
        assert (tmp_path / "variable").read_text() == NASTY
    if target == "tpu-vm":
        assert f"--env=A={NASTY}" in words
