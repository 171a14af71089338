"""What a run writes down when it starts, so that it can be understood and repeated."""

import collections
import json
import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from kosmos_jax.config import to_json
from kosmos_jax.model.perception import ENCODERS
from kosmos_jax.paths import as_path

log = logging.getLogger(__name__)
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow", "tensorflow-cpu", "sentencepiece", "numpy",
)  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the sources, with "+changes" when the working tree differs; None outside git."""
    here = Path(__file__).parent
    try:
        commands = ["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"]
        commit, changes = (subprocess.check_output(words, cwd=here, stderr=subprocess.PIPE) for words in commands)
        return commit.decode().strip() + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def parameter_counts(trainable, frozen) -> dict[str, int]:
    """Parameters of each tower, of all, and of those that train."""
    counts = collections.Counter()
    for path, x in (trainable | frozen).items():
        counts[path.split("/")[0]] += x.size
    return dict(counts) | {"total": sum(counts.values()), "trainable": sum(x.size for x in trainable.values())}


def write_run_files(workdir, config, tokenizer, abstract_state, mixture, mesh) -> None:
    """config.json, tokenizer.model and run.json (versions, commit, devices, mesh, parameters, data) in `workdir`.

    Args:
      workdir: of the run.
      config, tokenizer: as they are used.
      abstract_state: TrainState of shapes.
      mixture: the training data.
      mesh: of the run.
    """
    if jax.process_index() != 0:
        return
    workdir = as_path(workdir)
    counts = parameter_counts(abstract_state.trainable, abstract_state.frozen)
    (workdir / "config.json").write_text(to_json(config))
    (workdir / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    run = {
        "python": sys.version.split()[0],
        "packages": {package: v for package in PACKAGES if (v := _version(package))},
        "commit": _commit(),
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "parameters": counts,
        "data": mixture.summary(),
    }
    (workdir / "run.json").write_text(json.dumps(run, indent=2) + "\n")
    log.info("model: %s parameters, %s of them trained", f"{counts['total']:,}", f"{counts['trainable']:,}")
    for name, section in config.model.perception.items():
        words = ENCODERS[section.encoder.kind].described(section.shape, section.tokens)
        log.info("%s: %s, by %s", name, words, section.encoder.kind)
    log.info("devices: %d x %s, mesh %s", mesh.size, mesh.devices.flat[0].device_kind, dict(mesh.shape))
    for line in mixture.summary():
        log.info("data: %s", line)
