"""Checkpoints under a disk that fails: nothing is lost to an error that passes, and damage is never loaded."""

import errno
import itertools
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from kosmos_jax import checkpoint, cli
from kosmos_jax.checksums import checksums
from kosmos_jax.errors import PassingError, UserError
from kosmos_jax.parallel.mesh import make_mesh
from kosmos_jax.training import resume as resuming
from kosmos_jax.training.ledger import Ledger
from kosmos_jax.training.optimizer import make_optimizer
from kosmos_jax.training.state import initial_state, state_shardings

from .conftest import tiny_config

STEPS = (3, 6, 9)
TOKENIZER = SimpleNamespace(model_bytes=b"pieces")


@pytest.fixture(scope="module")
def made():
    return make()


def make():
    """A fresh state of a tiny model, with its shapes and shardings, on all devices."""
    config = tiny_config(**{"mesh.fsdp": -1, "model.text.ffn": 1024})  # large enough for files of their own
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.training.optimizer, config.training.steps)
    _, abstract, shardings = state_shardings(config, optimizer, mesh)
    state = jax.jit(partial(initial_state, config, optimizer), out_shardings=shardings)(jax.random.key(0))
    return SimpleNamespace(config=config, abstract=abstract, shardings=shardings, state=state)


def at_step(made, step: int):
    """The state with another number."""
    return replace(made.state, step=jax.device_put(np.int32(step), made.shardings.step))


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    ledger = Ledger(workdir, began=0.0, processes=1, active=True)
    with checkpoint.make_manager(workdir) as manager:
        for step in STEPS:
            checkpoint.save(manager, at_step(made, step), made.config, TOKENIZER, {"next_step": step})
            manager.wait_until_finished()
            ledger.saved(step)
    ledger.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A workdir with checkpoints of steps 3, 6 and 9, which differ in one number."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resumed(made, workdir):
    with checkpoint.make_manager(workdir) as manager:
        found = resuming.resume(workdir, manager, made.abstract, made.shardings, wait_seconds=10)
    return found and int(found[0].step)


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def weights_file(workdir, step) -> Path:
    """The largest file of a step's weights."""
    return max((workdir / "checkpoints" / str(step) / "params").rglob("d/*"), key=lambda path: path.stat().st_size)


def unreadable(path: Path):
    """Makes a file one that exists and cannot be opened, by root either: a link to itself. Returns how to undo it."""
    data = path.read_bytes()
    path.unlink()
    path.symlink_to(path.name)

    def undo():
        path.unlink()
        path.write_bytes(data)

    return undo


def test_a_disk_that_fails_for_a_second_costs_nothing(made, workdir, monkeypatch):
    monkeypatch.setattr(resuming, "PAUSES", (0.5,) * 20)
    undo = [unreadable(weights_file(workdir, step)) for step in STEPS]
    threading.Timer(1.5, lambda: [put_back() for put_back in undo]).start()
    assert resumed(made, workdir) == 9
    assert names(workdir) == ["3", "6", "9"]


def test_one_error_that_passes_at_once_costs_nothing(made, workdir, monkeypatch):
    errors = [OSError(errno.ESTALE, "Stale file handle"), ValueError("from TensorStore")]
    monkeypatch.setattr(resuming, "PAUSES", (0.0,) * 3)
    real = resuming._read

    def failing(*args):
        if errors:
            raise errors.pop()
        return real(*args)

    monkeypatch.setattr(resuming, "_read", failing)
    assert resumed(made, workdir) == 9
    assert names(workdir) == ["3", "6", "9"]


def test_a_disk_that_keeps_failing_ends_the_start_and_nothing_is_touched(made, workdir, monkeypatch):
    monkeypatch.setattr(resuming, "PAUSES", (0.0, 0.0))
    unreadable(weights_file(workdir, 9))
    with pytest.raises(PassingError, match=r"9 cannot be read at the moment.*Nothing was changed"):
        resumed(made, workdir)
    assert names(workdir) == ["3", "6", "9"]


def test_damage_costs_one_checkpoint_once_an_older_one_was_read(made, workdir):
    path = weights_file(workdir, 9)
    path.write_bytes(path.read_bytes()[:100])
    assert resumed(made, workdir) == 6
    assert names(workdir) == ["3", "6", "unreadable-9"]


def test_checkpoints_that_are_all_damaged_keep_their_names_however_often_the_run_starts(made, workdir):
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / "params" / "manifest.ocdbt").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the checkpoints \[3, 6, 9\] can be read"):
            resumed(made, workdir)
        assert names(workdir) == ["3", "6", "9"]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(made, workdir):
    for name in names(workdir):
        (workdir / "checkpoints" / name).rename(workdir / name)
    with pytest.raises(UserError, match="step 9 was saved here and there is no checkpoint to resume from"):
        resumed(made, workdir)
    (workdir / "9").rename(workdir / "checkpoints" / "unreadable-9")
    with pytest.raises(UserError, match="unreadable-9"):
        resumed(made, workdir)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(made, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    written = Ledger(tmp_path, began=0.0, processes=1, active=True)
    written.spent("step", step=1, tokens=1, loss=2.0)
    written.close()
    assert resumed(made, tmp_path) is None


def test_the_metrics_of_another_run_are_not_written_over(made, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(UserError, match="metrics.jsonl has 1 steps of another run"):
        resumed(made, tmp_path)


def test_a_checkpoint_that_was_never_finished_is_not_one(made, workdir):
    (workdir / "checkpoints" / "9" / checkpoint.COMMITTED).unlink()
    assert checkpoint.step_directory(workdir).name == "6"
    with pytest.raises(UserError, match="did not come to the end"):
        checkpoint.step_directory(workdir / "checkpoints" / "9")
    assert resumed(made, workdir) == 6 and names(workdir) == ["3", "6", "9"], (
        "it may be a copy that is still being made"
    )
    with checkpoint.make_manager(workdir) as manager:
        checkpoint.save(manager, at_step(made, 9), made.config, TOKENIZER, {"next_step": 9})
    assert resumed(made, workdir) == 9


@pytest.mark.parametrize("hidden", ["9", "9/params"])
def test_what_a_disk_does_not_show_is_not_damaged(hidden, made, workdir, monkeypatch):
    """A folder that a network's disk does not show yet, or that may not be entered."""
    monkeypatch.setattr(resuming, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(checkpoint, "committed_steps", lambda folder: [3, 6, 9])
    path = workdir / "checkpoints" / hidden
    path.rename(workdir / "hidden")
    if hidden != "9":
        path.symlink_to(path.name)
    with pytest.raises(PassingError, match="cannot be read at the moment"):
        resumed(made, workdir)


def test_a_flipped_bit_is_never_loaded(made, workdir, capsys):
    """TensorStore loads most of them in silence."""
    assert cli.main(["verify", "--checkpoint", str(workdir)]) == 0
    assert "all as they were written" in capsys.readouterr().out
    folder, wanted = workdir / "checkpoints" / "9", checkpoint.placed(made.abstract, made.shardings).parameters
    sums = checkpoint.read_run(folder)["checksums"]["params"]
    found, files = (
        [],
        sorted((folder / "params" / "ocdbt.process_0").rglob("d/*"), key=lambda path: path.stat().st_size),
    )
    for file, share in itertools.product(reversed(files), (0.15, 0.3, 0.5, 0.7, 0.85)):
        data = file.read_bytes()
        place = int(share * len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            read = checkpoint.read_item(folder, "params", wanted)
            checkpoint.assert_intact(folder, checksums(read), sums)
        except Exception as error:  # noqa: BLE001  what its database notices itself has many types
            found.append(type(error))
        else:
            for path, array in read.items():
                np.testing.assert_array_equal(array, made.state.parameters[path])
        if checkpoint.Damaged in found:
            break
        file.write_bytes(data)
    assert checkpoint.Damaged in found
    assert cli.main(["verify", "--checkpoint", str(workdir)]) == 2
    assert "9/params" in capsys.readouterr().err
    assert resumed(made, workdir) == 6
    assert names(workdir) == ["3", "6", "unreadable-9"]


def test_of_addresses_those_of_google_alone_are_read():
    with pytest.raises(UserError, match="--checkpoint s3://b/x: .* mount other buckets as folders"):
        checkpoint.restore("s3://b/x")
