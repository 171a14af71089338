"""What an operator asks of a run that is going: traces, which process is slow, what changed since the last start."""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from kosmos_jax.config import differences
from kosmos_jax.parallel.distributed import Interrupted, Preemption
from kosmos_jax.training.profile import STEPS, Profiler
from kosmos_jax.training.spread import verdict

from .conftest import tiny_config


def traced_steps(folder: Path) -> list[set[int]]:
    """The numbers of the steps in each trace of a folder."""
    found = []
    for path in sorted(folder.rglob("*.xplane.pb")):
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        events = (event for plane in planes for line in plane.lines for event in line.events)
        found.append({dict(event.stats)["step_num"] for event in events if event.name.startswith("train")})
    return found


def run(profiler: Profiler, steps: int, ask_at: int = 0):
    for step in range(1, steps + 1):
        if step == ask_at:
            os.kill(os.getpid(), signal.SIGUSR2)
        profiler.before(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = jnp.arange(step).sum()
        profiler.after(step, result)
    profiler.close()


@pytest.fixture(autouse=True)
def _():
    handler = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, handler)


def test_the_steps_of_the_config_are_traced(tmp_path):
    run(Profiler(tmp_path, (3, 4)), steps=6)
    assert traced_steps(tmp_path) == [{3, 4}]


def test_a_signal_asks_for_a_trace_of_the_next_steps(tmp_path):
    run(Profiler(tmp_path, (0, 0)), steps=9, ask_at=2)
    assert traced_steps(tmp_path) == [set(range(2, 2 + STEPS))]


def test_a_run_that_ends_in_a_trace_still_writes_it(tmp_path):
    run(Profiler(tmp_path, (2, 9)), steps=3)
    assert traced_steps(tmp_path) == [{2, 3}]


def test_the_process_with_the_busy_host_is_named():
    busy = {0: (0.1, 0.0, "a"), 1: (2.9, 2.8, "b"), 2: (0.2, 0.0, "c")}
    told = verdict(3.2, 0.8, busy)
    assert "process 1 on b is slow: its host is busy for 2.90 s of each, 2.80 of them waiting for data" in told
    assert "the others' for 0.15" in told


def test_hosts_that_are_equally_busy_are_not_blamed():
    told = verdict(3.2, 0.8, {0: (0.1, 0.0, "a"), 1: (0.2, 0.1, "b")})
    assert "look at the devices and the network" in told


def test_every_value_that_changed_is_named():
    before, now = tiny_config(), tiny_config(**{"training.optimizer.learning_rate": 0.5, "training.steps": 7})
    assert differences(before, before) == []
    assert differences(before, now) == [
        "training.optimizer.learning_rate 0.01, now 0.5",
        "training.steps 20, now 7",
    ]


def test_sigterm_cuts_short_what_may_be_and_waits_for_the_rest():
    with Preemption() as preemption:
        with pytest.raises(Interrupted), preemption.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("not cut short")
        assert preemption.requested()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one does not hurt
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested()
        with pytest.raises(Interrupted), preemption.interruptible():
            pytest.fail("begun after the signal")
