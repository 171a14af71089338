"""Workdirs in a bucket, asked by the same three libraries as Google's: gcsfs, TensorStore and google-cloud-storage."""

import json
import os
import subprocess
import sys
from functools import partial

import fsspec
import jax
import numpy as np
import pytest

from kosmos_jax import checkpoint, cli
from kosmos_jax.config import load_config
from kosmos_jax.errors import PassingError, UserError
from kosmos_jax.inference import load
from kosmos_jax.paths import as_path
from kosmos_jax.training import ledger, start
from kosmos_jax.training import resume as resuming
from kosmos_jax.training.lines import read_lines
from kosmos_jax.training.metrics import MetricWriter
from kosmos_jax.training.trainer import train
from tests.storage_fake import Storage, environment, served

from .conftest import tiny_config
from .test_resume import TOKENIZER, at_step, make, resumed
from .test_trainer import CONFIG, assert_same_weights, logged_steps

BUCKET = "my-runs"


@pytest.fixture(scope="module")
def service():
    stored = Storage(BUCKET)
    with served(stored) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(address).items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield stored


@pytest.fixture
def storage(service):
    """An empty bucket, "my-runs"."""
    service.buckets[BUCKET].clear()
    yield service
    service.refuse = lambda method, path: None


@pytest.fixture(scope="module")
def made():
    return make()


WORKDIR = f"gs://{BUCKET}/a/run"


def saved(made, *steps: int):
    with checkpoint.make_manager(WORKDIR, keep_last=2) as manager:
        for step in steps:
            checkpoint.save(manager, at_step(made, step), made.config, TOKENIZER, {"next_step": step})
            manager.wait_until_finished()


def test_what_is_saved_in_a_bucket_is_resumed_from_there(storage, made):
    saved(made, 3, 6, 9)
    assert checkpoint.committed_steps(as_path(WORKDIR) / "checkpoints") == [6, 9], "the last two are kept"
    with checkpoint.make_manager(WORKDIR) as manager:
        state, run = resuming.resume(WORKDIR, manager, made.abstract, made.shardings, wait_seconds=10)
    assert run["data"] == {"next_step": 9}
    jax.tree.map(np.testing.assert_array_equal, state, at_step(made, 9))


def test_a_step_without_its_last_file_is_not_read(storage, made):
    saved(made, 3, 6)
    del storage.buckets[BUCKET]["a/run/checkpoints/6/commit_success.txt"]
    assert checkpoint.step_directory(WORKDIR) == as_path(f"{WORKDIR}/checkpoints/3")
    with pytest.raises(UserError, match="its writing did not come to the end"):
        checkpoint.step_directory(f"{WORKDIR}/checkpoints/6")
    assert resumed(made, WORKDIR) == 3
    saved(made, 6)
    assert resumed(made, WORKDIR) == 6, "and the step is saved again"


def test_a_damaged_checkpoint_is_set_aside(storage, made, monkeypatch):
    monkeypatch.setattr(resuming, "PAUSES", (0.0,) * 3)
    saved(made, 3, 6)
    stored = storage.buckets[BUCKET]
    file = max(
        (name for name in stored if "/6/params/" in name and "/d/" in name), key=lambda name: len(stored[name][0])
    )
    stored[file] = bytes(len(stored[file][0])), stored[file][1]
    assert resumed(made, WORKDIR) == 3
    assert {name.split("/")[3] for name in stored if "/checkpoints/" in name} == {"3", "unreadable-6"}


def test_a_service_that_is_busy_is_asked_again(storage, made):
    left = {"GET": 2, "POST": 3}

    def busy(method, path):
        left[method] = left.get(method, 0) - 1
        return 503 if left[method] >= 0 else None

    storage.refuse = busy
    saved(made, 3)
    assert max(left.values()) < 0 and resumed(made, WORKDIR) == 3


def test_a_service_that_fails_while_resuming_costs_no_checkpoint(storage, made, monkeypatch):
    monkeypatch.setattr(resuming, "PAUSES", ())
    saved(made, 3)
    storage.refuse = lambda method, path: 403 if "/params/" in path else None
    with pytest.raises(PassingError, match="cannot be read at the moment"):
        resumed(made, WORKDIR)
    storage.refuse = lambda method, path: None
    assert resumed(made, WORKDIR) == 3


def config():
    return tiny_config(**{"training.wandb": False})


def test_metrics_and_ledger_reach_the_bucket_at_checkpoints_and_are_continued(storage):
    for first in (1, 4):
        with start.claim_workdir(WORKDIR) as spool:
            written = ledger.Ledger(spool.folder, began=0.0, processes=1, active=True)
            writer = MetricWriter(spool.folder, config(), first_step=first)
            for step in range(first, first + 4):
                writer.write(step, {"loss": float(step)})
            writer.publish()
            written.saved(first + 2)
            assert spool.publish()
            assert [line["step"] for line in read_lines(as_path(WORKDIR) / "metrics.jsonl")] == list(
                range(1, first + 4)
            )
            assert ledger.last(WORKDIR, "saved") == first + 2
            written.spent("end", ended="done")
            folder = spool.folder
        assert not folder.exists()
    assert [attempt.ended for attempt in ledger.read(WORKDIR)] == ["done", "done"]
    assert len([name for name in storage.buckets[BUCKET] if name.startswith("a/run/tensorboard/events")]) == 2


def test_a_bucket_that_takes_no_files_does_not_end_the_run(storage, caplog):
    with start.claim_workdir(WORKDIR) as spool:
        (spool.folder / "metrics.jsonl").write_text('{"step": 1}\n')
        storage.refuse = lambda method, path: 403 if path.endswith("metrics.jsonl") else None
        assert not spool.publish() and "IS NOT UP TO DATE" in caplog.text
        storage.refuse = lambda method, path: None
    assert storage.buckets[BUCKET]["a/run/metrics.jsonl"][0] == b'{"step": 1}\n'


def test_the_run_that_started_last_has_the_workdir(storage, monkeypatch):
    with pytest.raises(PassingError, match="started later has taken it over .*elsewhere"):
        with start.claim_workdir(WORKDIR) as first:
            (first.folder / "metrics.jsonl").write_text("old\n")
            with monkeypatch.context() as patch:
                patch.setattr("socket.gethostname", lambda: "elsewhere")
                with start.claim_workdir(WORKDIR) as second:
                    (second.folder / "metrics.jsonl").write_text("new\n")
            first.publish()
    assert storage.buckets[BUCKET]["a/run/metrics.jsonl"][0] == b"new\n"


TRAIN = ["train", "--config", CONFIG, "--workdir"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["report", "--workdir", "gs://no-such-bucket/x"], "no ledger.jsonl in it"),
        (["generate", "--prompt", "x", "--checkpoint", "gs://no-such-bucket/x"], "no such folder"),
        (["report", "--workdir", "s3://bucket/x"], "Mountpoint for Amazon S3"),
        (["verify", "--checkpoint", "s3://bucket/x"], "Mountpoint for Amazon S3"),
        (["verify", "--checkpoint", "gs:///x"], "gs://BUCKET/FOLDER alone is understood"),
        (["export", "--to", "torch", "--checkpoint", WORKDIR, "--out", "gs://my-runs/x"], "no such folder"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(storage, arguments, told, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_training_begins_in_a_bucket_that_is_there_and_can_be_written(storage):
    for status, address, told in (
        (None, "gs://no-such-bucket/x", "there is no such bucket"),
        (403, WORKDIR, r"access is denied \(Forbidden"),
        (None, "s3://bucket/x", "Mountpoint for Amazon S3"),
    ):
        storage.refuse = lambda method, path, status=status: status
        with pytest.raises(UserError, match=f"^--workdir {address}.*{told}"):
            with start.claim_workdir(address):
                pytest.fail("it begins")
    assert storage.buckets == {BUCKET: {}}, "and no bucket is made"


@pytest.mark.parametrize("verb", ["report", "generate", "eval", "verify"])
def test_denied_access_is_told_in_one_line(storage, verb, capsys):
    storage.refuse = lambda method, path: 403
    arguments = {"report": ["--workdir", WORKDIR], "generate": ["--prompt", "x"]}.get(verb, [])
    arguments += [] if verb == "report" else ["--checkpoint", WORKDIR]
    assert cli.main([verb, *arguments]) == (1 if verb == "report" else 2)
    assert "Forbidden" in (error := capsys.readouterr().err) and "Traceback" not in error


def _kill_at(process, stored, after: str, file: str, method: str, path: str) -> int | None:
    """Kills a process that is about to write `file`, once it has written `after`."""
    if path.startswith("/upload/") and path.endswith(f"a/run/{file}") and f"a/run/{after}" in stored:
        process.kill()
        return 503
    return None


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_ends_bit_for_bit_as_one_on_a_disk(storage, tmp_path, capsys):
    """SIGKILL before the last file of a checkpoint is there, and when one is complete and the ledger says nothing."""
    cache = f"--config.data.cache={tmp_path / 'cache'}"
    assert train(load_config(CONFIG, [cache.removeprefix("--config.")]), tmp_path / "disk") == 0
    command = [sys.executable, "-m", "kosmos_jax.cli", *TRAIN, WORKDIR, cache]
    like_here = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    last = "commit_success.txt"
    for after, file in ((f"checkpoints/4/{last}", f"checkpoints/8/{last}"), (f"checkpoints/12/{last}", "ledger.jsonl")):
        process = subprocess.Popen(command, env=like_here, stderr=subprocess.DEVNULL)
        storage.refuse = partial(_kill_at, process, storage.buckets[BUCKET], after, file)
        assert process.wait() == -9
    storage.refuse = lambda method, path: None
    assert checkpoint.committed_steps(as_path(WORKDIR) / "checkpoints") == [4, 8, 12]
    assert subprocess.run(command, env=like_here, stderr=subprocess.DEVNULL).returncode == 0
    assert_same_weights(WORKDIR, tmp_path / "disk")
    lines = [list(read_lines(as_path(place) / "metrics.jsonl")) for place in (WORKDIR, tmp_path / "disk")]
    assert [line["step"] for line in lines[0]] == list(range(1, 25))
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    attempts = ledger.read(WORKDIR)
    assert [(attempt.ended, attempt.first_step) for attempt in attempts] == [("killed", 0), ("killed", 4), ("done", 12)]
    assert not (tmp_path / "gs:").exists() and logged_steps(tmp_path / "disk") == list(range(1, 25))
    _every_verb_reads_it(storage, tmp_path, capsys)


def _every_verb_reads_it(storage, tmp_path, capsys):
    assert cli.main(["report", "--workdir", WORKDIR]) == 0
    assert "restarts 2, steps 24" in capsys.readouterr().out
    for verb, *more in (
        ("eval", "--config.evaluation.tasks=caption,sum", "--config.evaluation.examples=4"),
        ("generate", "--prompt", "The", "--max-new-tokens", "2"),
        ("verify",),
        ("export", "--to", "torch", "--out", str(tmp_path / "exported")),
    ):
        assert cli.main([verb, "--checkpoint", WORKDIR, *more]) == 0, verb
    assert {"report.png", "results.json", "losses.png", "run.json"} <= {
        path.name for path in as_path(WORKDIR).iterdir()
    }
    assert json.loads((tmp_path / "exported" / "config.json").read_text())
    assert load(WORKDIR).generate(["The"]) == load(tmp_path / "disk").generate(["The"])
