"""Processes of one job agree: on the checkpoint to resume from, and on how long they wait for each other."""

import json
import os
import subprocess
import sys
import time

import pytest

from launch.local import free_port

ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of two processes says of the cases in two_processes.py."""
    address, workdir = f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "tests.training.two_processes", str(workdir), address]
    started = [
        subprocess.Popen([*command, str(i)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()  # of one that has ended nothing happens
    lines = [output.strip().splitlines() for output, _ in ended]
    assert all(lines), [errors[-3000:] for _, errors in ended]
    return [json.loads(line[-1]) for line in lines]


@pytest.mark.slow
def test_an_error_of_one_process_that_passes_costs_nothing(told):
    assert [process["one error"] for process in told] == [9, 9]


@pytest.mark.slow
def test_an_error_of_one_process_that_stays_ends_both_and_nothing_is_touched(told):
    for process in told:
        assert process["it stays"].startswith("process 1: ") and "Nothing was changed" in process["it stays"]
        assert process["files"] == ["3", "6", "9"]


@pytest.mark.slow
def test_damage_that_one_process_sees_takes_both_one_step_back(told):
    assert [process["damage"] for process in told] == [6, 6]
    assert told[0]["files after"] == ["3", "6", "unreadable-9"]


@pytest.mark.slow
def test_a_checkpoint_that_process_0_cannot_write_is_left_out_by_both(told):
    assert [process["saves"] for process in told] == [[1, 3], [1, 3]]


@pytest.mark.slow
def test_a_signal_just_after_a_checkpoint_stops_both_after_the_same_step(told):
    assert told[0]["stopped at"] == told[1]["stopped at"] and 5 <= told[0]["stopped at"] < 400


@pytest.mark.slow
def test_an_index_that_takes_longer_than_collectives_wait_is_waited_for(told):
    """Collectives on CPU give up after 30 seconds; here process 1 then takes as long, with a disk of its own."""
    assert all(67 <= process["index"] < 90 and process["all"] == [0, 1] for process in told)


@pytest.mark.slow
def test_a_process_whose_host_is_slow_is_named_by_process_0(told):
    assert told[1]["slow"] == [] and len(told[0]["slow"]) == 1
    assert told[0]["slow"][0].startswith("step 8: steps take 3.00 s, 0.50 before; process 1 on ")


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_named(told):
    assert "no answer of process 1" in told[0]["late"]


def test_processes_that_do_not_come_end_the_others_with_a_message():
    code = "from kosmos_jax.parallel.distributed import start; start('127.0.0.1:{}', 2, 0, join_seconds=2)"
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code.format(free_port())], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1, "not 134, which is how JAX ends it"
    assert "did not all come within 2 s" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and time.monotonic() - begin < 60
