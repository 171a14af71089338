"""Checkpoints that cannot be written: tried again, said loudly, and the end of a run only after several."""

import logging

import pytest

from kosmos_jax import checkpoint
from kosmos_jax.errors import PassingError
from kosmos_jax.training import saver
from kosmos_jax.training.resume import resume

from .test_resume import TOKENIZER, at_step, made  # noqa: F401


class Disk:
    """The folder of checkpoints, which can be taken away and given back."""

    def __init__(self, workdir):
        self.folder, self.aside = workdir / "checkpoints", workdir / "aside"

    def fail(self):
        self.folder.rename(self.aside)
        self.folder.write_text("no folder")

    def recover(self):
        self.folder.unlink()
        self.aside.rename(self.folder)


@pytest.fixture
def run(made, tmp_path, monkeypatch):  # noqa: F811
    """Saves the state as that of a step; `saved` has the steps whose checkpoints are complete."""
    monkeypatch.setattr(saver, "PAUSE", 0.0)
    monkeypatch.setattr(saver, "LAST_PAUSE", 0.0)

    class Run:
        saved, disk = [], Disk(tmp_path)
        manager = checkpoint.make_manager(tmp_path)
        saver = saver.Saver(manager, max_failed=3, wait_seconds=10, on_saved=saved.append)

        def save(self, step):
            self.saver.save(at_step(made, step), made.config, TOKENIZER, {"next_step": step})

        def resumed(self):
            with checkpoint.make_manager(tmp_path) as manager:
                return int(resume(tmp_path, manager, made.abstract, made.shardings, 10)[0].step)

    yield Run()
    Run.saver.close()


def test_a_checkpoint_that_fails_is_tried_again_and_the_run_continues(run, caplog):
    run.save(1)
    run.saver.finish()
    run.disk.fail()
    run.save(2)
    run.saver.finish()
    assert "CHECKPOINT NOT SAVED, failure 1 of 3 in a row: the checkpoint of step 2" in caplog.text
    run.disk.recover()
    run.saver.poll()
    assert run.saver.retry
    run.save(3)
    run.saver.finish()
    assert not run.saver.retry and run.saved == [1, 3] and run.resumed() == 3


def test_the_run_ends_when_too_many_failed_in_a_row(run, caplog):
    caplog.set_level(logging.ERROR)
    run.disk.fail()
    with pytest.raises(PassingError, match=r"number 3 in a row \(training.max_failed_saves\)"):
        for step in range(1, 4):
            run.save(step)
            run.saver.finish()
    assert caplog.text.count("CHECKPOINT NOT SAVED") == 2
    run.disk.recover()


def test_the_last_checkpoint_is_tried_until_it_is_there(run):
    run.disk.fail()
    tries = iter(range(9))

    def save():
        if next(tries) == 2:
            run.disk.recover()
        run.save(7)

    run.saver.save_last(save)
    assert run.saved == [7] and run.resumed() == 7
