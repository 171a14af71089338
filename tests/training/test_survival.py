"""What ends a process that is in trouble, and what the ledger says of it afterwards."""

import json
import subprocess
import sys

import pytest

from kosmos_jax import cli
from kosmos_jax.errors import EXIT_HUNG, EXIT_PREEMPTED, UserError
from kosmos_jax.training import ledger, watchdog


def python(code: str):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


WATCHED = """
import time
from kosmos_jax.training import watchdog
watchdog.COMPILATION_SECONDS = {compilation}
dog = watchdog.Watchdog({limit}, "process 3", {limit})
def stuck():
    time.sleep({sleep})
for step in range({steps}):
    dog.alive(f"step {{step}}")
stuck()
dog.close()
"""


def test_a_process_that_hangs_ends_and_says_where():
    result = python(WATCHED.format(limit=0.5, compilation=60, steps=6, sleep=50))
    assert result.returncode == EXIT_HUNG
    assert "process 3 HANGS: nothing was finished since step 5 for more than" in result.stderr
    assert "in stuck" in result.stderr


def test_without_a_limit_nothing_is_ended():
    assert python(WATCHED.format(limit=0, compilation=0, steps=6, sleep=1.5)).returncode == 0


def test_the_first_step_may_take_longer_because_it_is_compiled():
    assert python(WATCHED.format(limit=0.1, compilation=60, steps=0, sleep=1.5)).returncode == 0
    assert watchdog.COMPILATION_SECONDS > 600


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_before_the_first_step_ends_the_run_at_once(name, tmp_path):
    """As process 1 of a container nothing would happen unless it is caught; here it comes while the config is read."""
    config = tmp_path / "impatient.py"
    config.write_text(f"import os, signal\ndef get_config():\n    os.kill(os.getpid(), signal.{name})\n")
    code = f"from kosmos_jax import cli; cli.main(['train', '--config', {str(config)!r}, '--workdir', 'nowhere'])"
    result = python(code)
    assert result.returncode == EXIT_PREEMPTED
    assert result.stderr.startswith("kosmos train: stopped by SIGTERM") and len(result.stderr.splitlines()) == 1


def test_under_nohup_the_end_of_the_terminal_ends_nothing(tmp_path):
    config = tmp_path / "impatient.py"
    config.write_text(
        "import os, signal\ndef get_config():\n    os.kill(os.getpid(), signal.SIGHUP)\n    return 1 / 0\n"
    )
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from kosmos_jax import cli; "
        f"cli.main(['train', '--config', {str(config)!r}, '--workdir', 'nowhere'])"
    )
    assert "line 4: ZeroDivisionError" in python(code).stderr


def write(workdir, *lines):
    (workdir / ledger.NAME).write_text("".join(line + "\n" for line in lines))


def line(at, kind, seconds=1.0, wait=0.0, **facts):
    return json.dumps({"at": at, "kind": kind, "seconds": seconds, "wait": wait, **facts})


@pytest.fixture
def killed_once(tmp_path):
    """Killed after step 3, whose line is cut short, with a checkpoint of step 1; then it goes on to step 3."""
    write(
        tmp_path,
        json.dumps({"at": 100.0, "kind": "attempt", "processes": 1}),
        line(110.0, "start", 10.0, step=0),
        line(115.0, "compile", 5.0, wait=1.0),
        line(116.0, "step", step=1, tokens=100, loss=3.0),
        line(117.0, "checkpoint"),
        line(119.0, "step", 2.0, wait=0.5, step=2, tokens=100, loss=2.0),
        line(121.0, "step", step=3, tokens=100, loss=1.0)[:30],
        json.dumps({"at": 130.0, "kind": "attempt", "processes": 1}),
        line(138.0, "start", 8.0, step=1),
        line(139.0, "step", step=2, tokens=100, loss=2.0),
        line(140.0, "step", step=3, tokens=100, loss=None),
        line(140.5, "end", 0.5, ended="done"),
    )
    return tmp_path


def test_steps_that_were_done_again_are_lost_work(killed_once):
    first, second = ledger.read(killed_once)
    assert (first.lost, second.lost) == (1, 0)
    assert (first.ended, second.ended) == ("killed", "done")
    wanted = {"start": 10.0, "compile": 4.0, "data wait": 1.0, "step": 1.0, "checkpoint": 1.0, "lost work": 2.0}
    assert {kind: seconds for kind, seconds in first.seconds.items() if seconds} == wanted


def test_the_report_is_a_table_and_a_picture(killed_once, capsys):
    assert cli.main(["report", "--workdir", str(killed_once)]) == 0
    printed = capsys.readouterr().out
    table = {words[0]: words[1:] for words in (row.split() for row in printed.splitlines()) if words}
    assert table["start"] == ["18.0", "61.0"] and table["lost"] == ["work", "2.0", "6.8"] and table["all"][0] == "29.5"
    assert "restarts 1, steps 3, steps lost 1, seconds between the attempts 11.0" in printed
    assert "tokens/s 10 over all, 75 while it trained" in printed
    assert table["1"] == ["0", "2", "1", "19.0", "killed"] and table["2"] == ["1", "3", "0", "10.5", "done"]
    assert (killed_once / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_ledger_that_was_cut_short_is_continued_on_a_new_line(tmp_path):
    (tmp_path / ledger.NAME).write_text(json.dumps({"at": 1.0, "kind": "attempt", "processes": 1}) + '\n{"at": 2.')
    continued = ledger.Ledger(tmp_path, began=5.0, processes=1, active=True)
    continued.spent("start", step=0)
    continued.close()
    assert [attempt.began for attempt in ledger.read(tmp_path)] == [1.0, 5.0]


def test_without_a_ledger_the_report_says_so(tmp_path):
    with pytest.raises(UserError, match="no ledger.jsonl in it"):
        ledger.read(tmp_path)
