"""The files of a workdir: one run at a time, lines that survive a full disk, times that nobody can set back."""

import json
import resource
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.tensorflow_alone import tensorflow
from kosmos_jax.errors import PassingError, UserError
from kosmos_jax.training import ledger, start
from kosmos_jax.training.lines import Lines, read_lines
from kosmos_jax.training.metrics import MetricWriter

from .conftest import tiny_config


def test_two_runs_do_not_share_a_workdir(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "LOCK_SECONDS", 0.1)
    with start.claim_workdir(tmp_path):
        with pytest.raises(PassingError, match=r"another run is using it \(.*\"process\": \d+"):
            with start.claim_workdir(tmp_path):
                pytest.fail("both have it")
    with start.claim_workdir(tmp_path):
        pass


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    code = (
        "import os, signal, sys; from kosmos_jax.training.start import claim_workdir\n"
        "with claim_workdir(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    with start.claim_workdir(tmp_path):
        pass


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_workdir_that_cannot_be_written_is_told_in_one_line(place, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"--workdir .*/{place} cannot be written"):
        with start.claim_workdir(tmp_path / place):
            pass


@pytest.fixture
def full_disk():
    """No file of this process can grow beyond so many bytes, as on a disk that is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[1] if size is None else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_lines_wait_while_the_disk_is_full_and_none_is_torn(tmp_path, full_disk):
    path = tmp_path / "lines.jsonl"
    lines = Lines(path)
    lines.append({"n": 0})
    full_disk(14)  # in the middle of the second line
    for n in range(1, 4):
        lines.append({"n": n})
        lines.publish()
    assert path.stat().st_size == 14
    full_disk(None)
    lines.append({"n": 4})
    lines.close()
    assert [line["n"] for line in read_lines(path)] == [0, 1, 2, 3, 4]


def test_a_full_disk_does_not_stop_the_metrics(tmp_path, full_disk):
    writer = MetricWriter(tmp_path, tiny_config(**{"training.wandb": False}), first_step=1)
    writer.write(1, {"loss": 1.0})
    writer.publish()
    full_disk(10)
    for step in range(2, 40):
        writer.write(step, {f"number {n}": 1.0 for n in range(25)})
        writer.publish()
    full_disk(None)
    writer.write(40, {"loss": 4.0})
    writer.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 41))
    assert scalars(tmp_path / "tensorboard") >= {(1, "loss", 1.0), (40, "loss", 4.0)}


def scalars(folder) -> set:
    """(step, name, value) of all that TensorFlow's reader finds, up to what was cut short."""
    tf, found = tensorflow(), set()
    for path in folder.iterdir():
        try:
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                found |= {(event.step, value.tag, value.simple_value) for value in event.summary.value}
        except tf.errors.DataLossError:
            continue
    return found


def test_what_was_published_is_in_closed_files(tmp_path):
    """A bucket that is mounted as a folder has a file once it is closed: a new part of TensorBoard's for each."""
    writer = MetricWriter(tmp_path, tiny_config(**{"training.wandb": False}), first_step=1)
    for step in (1, 2):
        writer.write(step, {"loss": 1.0})
        writer.publish()
    assert scalars(tmp_path / "tensorboard") == {(1, "loss", 1.0), (2, "loss", 1.0)}, "files of one second"
    writer.close()


def test_a_clock_that_is_set_back_does_not_disturb_the_ledger(tmp_path, monkeypatch):
    written = ledger.Ledger(tmp_path, began=time.time() - 5, processes=1, active=True)
    monkeypatch.setattr(ledger.time, "time", lambda: 0.0)
    written.spent("start", step=0)
    time.sleep(0.05)
    written.spent("compile")
    written.close()
    monkeypatch.undo()
    (attempt,) = ledger.read(tmp_path)
    assert 5 <= attempt.seconds["start"] < 10 and 0.05 <= attempt.seconds["compile"] < 1
    lines = [json.loads(line) for line in (tmp_path / ledger.NAME).read_text().splitlines()]
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


def test_a_complete_checkpoint_is_a_line_without_time(tmp_path):
    written = ledger.Ledger(tmp_path, began=0.0, processes=1, active=True)
    assert ledger.last(tmp_path, "saved") == 0
    for step in (4, 8):
        written.saved(step)
    written.close()
    assert ledger.last(tmp_path, "saved") == 8 and not ledger.read(tmp_path)[0].seconds
