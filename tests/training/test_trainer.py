"""Whole runs: stopped, killed, damaged and resumed, they end as if nothing had happened."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kosmos_jax import checkpoint
from kosmos_jax.config import load_config
from kosmos_jax.errors import UserError
from kosmos_jax.training.trainer import EXIT_PREEMPTED, train

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
    assert sorted(int(p.name) for p in (unbroken / "checkpoints").iterdir()) == [16, 20, 24]
    assert list((unbroken / "tensorboard").iterdir())
    for path in (unbroken, unbroken / "checkpoints", unbroken / "checkpoints" / "24"):
        assert checkpoint.step_directory(path) == unbroken / "checkpoints" / "24"


def test_a_run_in_two_parts_ends_with_the_same_weights(unbroken, cache, tmp_path):
    """Part one has a schedule of 24 steps as well, and is stopped by SIGTERM after the tenth."""
    calls = []

    def terminate(*_):
        calls.append(os.kill(os.getpid(), signal.SIGTERM))
        return {}

    assert train(config(cache, "training.eval_every=10"), tmp_path, evaluate=terminate) == EXIT_PREEMPTED
    stopped_after = checkpoint.restore(tmp_path).step
    assert 10 <= stopped_after < 24
    assert train(config(cache), tmp_path) == 0
    assert_same_weights(tmp_path, unbroken)
    assert logged_steps(tmp_path) == list(range(1, 25))


def cut_short(folder: Path, pattern: str):
    for file in filter(Path.is_file, folder.rglob(pattern)):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


SLOW = [
    pytest.param(file, marks=pytest.mark.slow) for file in ("training/**/d/*", "params/manifest.ocdbt", "run/metadata")
]


@pytest.mark.parametrize("damage", ["params/**/d/*", *SLOW])
def test_a_damaged_newest_checkpoint_is_set_aside_loudly(damage, unbroken, cache, tmp_path, caplog):
    train(config(cache, "training.steps=8"), tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [4, 8]
    cut_short(tmp_path / "checkpoints" / "8", damage)
    caplog.set_level(logging.INFO)
    assert train(config(cache, "training.steps=8"), tmp_path) == 0
    assert "CANNOT BE READ" in caplog.text and "unreadable-8" in caplog.text
    assert "going on from step 4" in caplog.text
    assert (tmp_path / "checkpoints" / "8" / "params").is_dir()


@pytest.mark.slow
def test_no_readable_checkpoint_at_all_is_an_error_not_a_fresh_start(cache, tmp_path):
    train(config(cache, "training.steps=4"), tmp_path)
    cut_short(tmp_path / "checkpoints" / "4", "params/**/d/*")
    with pytest.raises(UserError, match="none of the checkpoints"):
        train(config(cache, "training.steps=8"), tmp_path)


def test_another_model_in_the_same_workdir_is_refused_and_nothing_is_touched(cache, tmp_path):
    train(config(cache, "training.steps=4"), tmp_path)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"holds another model.*\[2, 32\], now \[3, 32\]"):
        train(config(cache, "model.text.layers=3"), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before


def test_a_run_that_only_skips_updates_stops_and_says_so(cache, tmp_path):
    with pytest.raises(UserError, match="were all skipped"):
        train(config(cache, "training.optimizer.learning_rate=1e30", "training.max_nonfinite=2"), tmp_path)


def test_a_vocabulary_that_does_not_fit_the_tokenizer_is_named(unbroken, cache, tmp_path):
    with pytest.raises(UserError, match="vocab_size=407"):
        train(config(cache, f"data.tokenizer.path={unbroken}/tokenizer.model", "model.text.vocab_size=500"), tmp_path)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.restore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint in it"):
        checkpoint.restore(tmp_path)


@pytest.mark.slow
def test_a_run_killed_at_random_ends_bit_for_bit_as_the_unbroken_one(unbroken, cache, tmp_path):
    """SIGKILL after a random step, three times; then the same command is left alone."""
    command = [sys.executable, "-m", "kosmos_jax.cli", "train", "--config", CONFIG, "--workdir", str(tmp_path)]
    command += [f"--config.data.cache={cache}"]
    eight_devices = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    rng = random.Random(0)
    kills = 0
    for stop in sorted(rng.sample(range(3, 23), 3)):
        process = subprocess.Popen(command, env=eight_devices, stderr=subprocess.DEVNULL)
        metrics = tmp_path / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and (logged_steps(tmp_path) or [0])[-1] >= stop):
            time.sleep(0.005)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills, "no run was still going when it should have been killed"
    assert subprocess.run(command, env=eight_devices, stderr=subprocess.DEVNULL).returncode == 0
    assert_same_weights(tmp_path, unbroken)
    assert logged_steps(tmp_path) == list(range(1, 25))
