import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.cases import ROOT

# A process that says which flags it was given, then does what its second half says.
SAY = "import os, signal, sys, time; print(*sys.argv[1:], os.environ.get('JAX_LOCAL_DEVICE_IDS'), flush=True); "
RANK = "rank = int(sys.argv[-1].split('=')[1]); "


def start(code: str, *options: str, ignored: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.local", *options, "--", sys.executable, "-c", SAY + RANK + code]
    ignore = (lambda: signal.signal(ignored, signal.SIG_IGN)) if ignored else None
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=ignore, **pipes)


def run(code: str, *options: str) -> tuple[int, list[str]]:
    process = start(code, *options)
    output = process.communicate(timeout=30)[0]
    return process.returncode, output.splitlines()


def test_every_process_gets_its_number_and_one_coordinator():
    status, lines = run("print('second line')", "--here=3")
    assert status == 0
    words = sorted(line.split() for line in lines if "--coordinator" in line)
    assert [(line[0], line[2:]) for line in words] == [
        (f"[{rank}]", ["--processes=3", f"--process-id={rank}", "None"]) for rank in range(3)
    ]
    assert len({line[1] for line in words}) == 1 and words[0][1].startswith("--coordinator=127.0.0.1:")
    assert sorted(line for line in lines if "second" in line) == [f"[{rank}] second line" for rank in range(3)]


def test_the_processes_of_one_host_among_several():
    _, lines = run("", "--here=2", "--total=8", "--first=6", "--coordinator=h-0:8476", "--one-gpu-each")
    assert sorted(lines) == [
        f"[{6 + index}] --coordinator=h-0:8476 --processes=8 --process-id={6 + index} {index}" for index in range(2)
    ]


@pytest.mark.parametrize(
    "code, expected",
    [("sys.exit(75)", 75), ("sys.exit(75 * rank)", 75), ("sys.exit(3 * rank)", 3), ("sys.exit(0)", 0)],
)
def test_the_status_says_whether_to_start_again(code, expected):
    assert run(code, "--here=2")[0] == expected


def test_when_one_dies_the_others_are_killed_within_the_grace():
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)"
    status, lines = run(code, "--here=3", "--grace=0.5")
    assert status == 128 + signal.SIGKILL
    assert "[launch.local] process 1 ended with status 137" in lines
    assert "[launch.local] 1 still there after 0.5 s: killed" in lines


def test_those_that_end_by_themselves_after_a_failure_have_the_time_to_say_why():
    _, lines = run("time.sleep(0.5) if rank else sys.exit(1); print('the other is gone')", "--here=2", "--grace=20")
    assert "[1] the other is gone" in lines


# A second signal would find it saving, and end it.
SAVE = (
    "stop = lambda *_: (signal.signal(signal.SIGTERM, signal.SIG_DFL), time.sleep(0.3), print('saved', flush=True), "
    "sys.exit(75)); "
    "[signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)]; "
    "print('ready', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], [signal.SIGHUP] * 3, [signal.SIGTERM, signal.SIGHUP]],
)
def test_a_signal_to_stop_reaches_all_of_them_once(numbers):
    process = start(SAVE, "--here=2")
    read_until(process, "ready", 2)
    for number in numbers:
        process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]


def test_a_second_signal_kills():
    ignore = "signal.signal(signal.SIGTERM, lambda *_: print('later', flush=True)); print('ready', flush=True); "
    process = start(ignore + "[time.sleep(0.1) for _ in range(600)]", "--here=2")
    read_until(process, "ready", 2)
    process.send_signal(signal.SIGTERM)
    read_until(process, "later", 2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) and process.returncode == 137


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_question_reaches_all_of_them_and_they_continue(number):
    answer = f"signal.signal({int(number)}, lambda *_: print('answer', flush=True)); "
    process = start(answer + SAVE + "; time.sleep(60)", "--here=2")
    read_until(process, "ready", 2)
    for _ in range(2):
        process.send_signal(number)
        read_until(process, "answer", 2)
    process.terminate()
    assert process.communicate(timeout=30) and process.returncode == 75


def test_a_question_does_not_end_a_process_that_cannot_answer_yet():
    process = start("time.sleep(0.5); print('still here')", "--here=2")
    read_until(process, "--process-id", 2)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0 and output.count("still here") == 2


def test_when_it_is_killed_its_processes_are_asked_to_stop(tmp_path):
    # Linux sends the signal again for each thread of the parent that ends.
    code = SAVE.replace("print('saved', flush=True)", f"open('{tmp_path}/' + str(rank), 'w').close()")
    code = code.replace("SIG_DFL", "SIG_IGN")
    process = start("print('number', os.getpid(), flush=True); " + code, "--here=2")
    lines = [process.stdout.readline() for _ in range(6)]
    numbers = [int(line.split()[-1]) for line in lines if "number" in line]
    process.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(numbers) == 2 and not any(map(alive, numbers))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_they_continue_when_nobody_reads_their_lines():
    process = start("[print('x' * 99) for _ in range(9999)]; sys.exit(75)", "--here=2")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 75


def test_a_line_longer_than_the_output_takes_at_once_arrives_complete():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "launch.local", "--here=1", "--", sys.executable, "-c", "print('x' * 300_000)"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=writing)
    os.close(writing)
    with open(reading) as lines:
        assert lines.read() == "[0] " + "x" * 300_000 + "\n"
    assert process.wait(timeout=30) == 0


def test_under_nohup_the_end_of_the_terminal_ends_nothing():
    process = start("time.sleep(0.5)", "--here=2", ignored=signal.SIGHUP)
    read_until(process, "--process-id", 2)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0


def test_a_command_that_does_not_exist_is_a_mistake():
    command = [sys.executable, "-m", "launch.local", "--here=2", "--", "kosmoss", "train"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert result.returncode == 2 and result.stderr.endswith("error: there is no command kosmoss\n")


def test_nothing_that_they_started_stays_behind():
    code = "import subprocess; print('child', subprocess.Popen(['sleep', '60']).pid, flush=True); sys.exit(rank)"
    _, lines = run(code, "--here=2", "--grace=0.2")
    children = [int(line.split()[-1]) for line in lines if "child" in line]
    assert len(children) == 2 and not any(alive(child) for child in children)


def alive(number: int) -> bool:
    """A process that runs; one that has ended and that nobody has asked about does not count."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read_until(process, word: str, times: int):
    while times:
        line = process.stdout.readline()
        assert line, "it ended"
        times -= word in line
