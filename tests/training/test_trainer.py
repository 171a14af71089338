"""Whole runs: stopped, killed, damaged and resumed, they end as if nothing had happened."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kosmos_jax import checkpoint
from kosmos_jax.config import load_config
from kosmos_jax.errors import EXIT_PREEMPTED, UserError
from kosmos_jax.training import ledger, trainer
from kosmos_jax.training.feed import Feed
from kosmos_jax.training.trainer import train

CONFIG = str(Path(__file__).with_name("tiny_run.py"))


def config(cache, *overrides):
    return load_config(CONFIG, [f"data.cache={cache}", *overrides])


def weights(workdir):
    return {path: np.asarray(array) for path, array in checkpoint.restore(workdir).params.items()}


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def logged_steps(workdir):
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("unbroken")
    assert train(config(cache), workdir) == 0
    return workdir


def test_a_run_leaves_what_is_needed_to_understand_and_use_it(unbroken, cache):
    assert load_config(unbroken / "config.json") == config(cache)
    run = json.loads((unbroken / "run.json").read_text())
    restored = checkpoint.restore(unbroken)
    assert run["parameters"]["total"] == sum(array.size for array in restored.params.values())
    assert {"packages", "commit", "devices", "mesh", "data"} <= run.keys()
    assert logged_steps(unbroken) == list(range(1, 25))
    assert restored.step == 24 and restored.config == config(cache)
    assert restored.tokenizer.model_bytes == (unbroken / "tokenizer.model").read_bytes()
    assert checkpoints(unbroken) == [16, 20, 24]
    assert list((unbroken / "tensorboard").iterdir())
    for path in (unbroken, unbroken / "checkpoints", unbroken / "checkpoints" / "24"):
        assert checkpoint.step_directory(path) == unbroken / "checkpoints" / "24"


def test_the_ledger_accounts_for_every_second_of_a_run(unbroken):
    (attempt,) = ledger.read(unbroken)
    assert attempt.ended == "done" and attempt.first_step == attempt.lost == 0
    assert [step["step"] for step in attempt.steps] == logged_steps(unbroken)
    assert sum(attempt.seconds.values()) == pytest.approx(attempt.until - attempt.began)
    assert all(attempt.seconds[kind] > 0 for kind in ("start", "compile", "data wait", "step", "checkpoint"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, cache):
    """A run that SIGTERM stopped in the evaluation after the ninth step, with checkpoints of steps 4, 8 and 9."""

    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal does not end the evaluation")

    workdir = tmp_path_factory.mktemp("stopped")
    assert train(config(cache, "training.eval_every=9"), workdir, evaluate=terminate) == EXIT_PREEMPTED
    assert checkpoints(workdir) == [4, 8, 9]
    return workdir


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_a_run_in_two_parts_ends_with_the_same_weights(unbroken, stopped, cache, tmp_path, caplog):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert train(config(cache), tmp_path) == 0
    assert "THE CONFIG CHANGED since the checkpoint was written: training.eval_every 9, now 0" in caplog.text
    assert_same_weights(tmp_path, unbroken)
    assert logged_steps(tmp_path) == list(range(1, 25))
    assert [attempt.ended for attempt in ledger.read(tmp_path)] == ["preempted", "done"]


def test_a_run_asks_for_no_batch_after_its_last(stopped, cache, tmp_path, monkeypatch):
    """To wait for one more, and for the threads that would make it, took up to a minute at the end."""
    asked = []

    class Counting(Feed):
        def __next__(self):
            asked.append(1)
            return super().__next__()

    opened = trainer.open_feed

    def counted(*args):
        feed = opened(*args)
        feed.__class__ = Counting
        return feed

    monkeypatch.setattr(trainer, "open_feed", counted)
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert train(config(cache, "training.steps=12"), tmp_path) == 0
    assert len(asked) == 12 - 9


def cut_short(folder: Path, pattern: str):
    for file in filter(Path.is_file, folder.rglob(pattern)):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


SLOW = [
    pytest.param(file, marks=pytest.mark.slow) for file in ("training/**/d/*", "params/manifest.ocdbt", "run/metadata")
]


@pytest.mark.parametrize("damage", ["params/**/d/*", *SLOW])
def test_a_damaged_newest_checkpoint_is_set_aside_loudly(damage, stopped, unbroken, cache, tmp_path, caplog):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    cut_short(tmp_path / "checkpoints" / "9", damage)
    caplog.set_level(logging.INFO)
    assert train(config(cache), tmp_path) == 0
    assert "CANNOT BE READ" in caplog.text and "unreadable-9" in caplog.text
    assert "resuming from step 8" in caplog.text
    assert (tmp_path / "checkpoints" / "unreadable-9" / "params").is_dir()
    assert_same_weights(tmp_path, unbroken)


@pytest.mark.slow
def test_no_readable_checkpoint_at_all_is_an_error_not_a_fresh_start(stopped, cache, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    for step in (4, 8, 9):
        cut_short(tmp_path / "checkpoints" / str(step), "params/**/d/*")
    with pytest.raises(UserError, match="none of the checkpoints"):
        train(config(cache), tmp_path)


def test_another_model_in_the_same_workdir_is_refused_and_nothing_is_touched(stopped, cache):
    with pytest.raises(UserError, match=r"holds another model.*\[2, 32\], now \[3, 32\]"):
        train(config(cache, "model.text.layers=3"), stopped)
    assert checkpoints(stopped) == [4, 8, 9]


@pytest.mark.slow
def test_a_run_that_only_skips_updates_stops_and_says_so(cache, tmp_path):
    with pytest.raises(UserError, match="were all skipped"):
        train(config(cache, "training.optimizer.learning_rate=1e30", "training.max_nonfinite=2"), tmp_path)


def test_a_vocabulary_that_does_not_fit_the_tokenizer_is_named(unbroken, cache, tmp_path):
    with pytest.raises(UserError, match="vocab_size=407"):
        train(config(cache, f"data.tokenizer.path={unbroken}/tokenizer.model", "model.text.vocab_size=500"), tmp_path)
    assert ledger.read(tmp_path)[-1].ended == "error"


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.restore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint in it"):
        checkpoint.restore(tmp_path)


@pytest.mark.slow
def test_a_run_killed_at_random_ends_bit_for_bit_as_the_unbroken_one(unbroken, cache, tmp_path):
    """SIGKILL after a random step, twice; then the run is left alone."""
    command = [sys.executable, "-m", "kosmos_jax.cli", "train", "--config", CONFIG, "--workdir", str(tmp_path)]
    command += [f"--config.data.cache={cache}"]
    # As tests/conftest.py sets it for this process.
    like_here = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    stops = sorted(random.Random(0).sample(range(3, 23), 2))
    for stop in stops:
        process = subprocess.Popen(command, env=like_here, stderr=subprocess.DEVNULL)
        metrics = tmp_path / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and (logged_steps(tmp_path) or [0])[-1] >= stop):
            time.sleep(0.005)
        process.kill()
        process.wait()
    assert train(config(cache), tmp_path) == 0
    assert_same_weights(tmp_path, unbroken)
    assert logged_steps(tmp_path) == list(range(1, 25))
    attempts = ledger.read(tmp_path)
    assert [attempt.ended for attempt in attempts] == ["killed", "killed", "done"]
    assert sum(len(attempt.steps) - attempt.lost for attempt in attempts) == 24
