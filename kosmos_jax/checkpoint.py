"""Checkpoints: asynchronous, sharded and self-contained: weights, optimizer, step, data state, config and tokenizer.

A step's folder holds these Orbax items:

    params    path -> array: what inference, evaluation and export read
    average   the moving average of the weights, when training.ema_decay is set; inference then prefers it
    training  optimizer state and counters: what resuming needs besides
    run       JSON: config, tokenizer, the data pipeline's few integers, versions, checksums of all arrays

and `commit_success.txt`, which comes last: a folder without it was never finished, and nobody reads it.

It restores onto any mesh: shapes and shardings come from the caller, each process reads only its own bytes.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.checksums import checksums, names
from kosmos_jax.config import from_json, to_json
from kosmos_jax.errors import UserError, from_os
from kosmos_jax.modality import modalities
from kosmos_jax.model import abstract_model, stacks
from kosmos_jax.paths import as_path, storage_errors

# Bytes of weights that are read together, at least, where all are read one after another.
TOGETHER = 2**28
ITEMS = ("params", "average", "training", "run")
COMMITTED = "commit_success.txt"
# Written where they stay and committed by one more file: in a bucket, renaming a folder is many operations.
IN_PLACE = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)


class Damaged(UserError):
    """A checkpoint whose files can be read and do not hold what was written."""


class Manager(ocp.CheckpointManager):
    """Orbax's, but for one thing: it asks JAX about preemption under the number of the step.

    JAX has one counter for that, and `distributed.Preemption` is the one who uses it.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def make_manager(workdir, keep_last=None, keep_every=None) -> Manager:
    """The manager of `workdir`/checkpoints: saves in the background, retains the last few and every K-th.

    Args:
      workdir: of the run.
      keep_last: how many of the newest checkpoints to retain.
      keep_every: and those of steps that this divides; 0 for none.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep_last or None,
        keep_period=keep_every or None,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),  # an error is there at once
        atomicity_options=IN_PLACE,
    )
    return Manager(as_path(workdir) / "checkpoints", options=options, item_names=ITEMS)


def items(state) -> dict[str, dict]:
    """The arrays of a TrainState, or their shapes or shardings, by item."""
    fields = ("step", "optimizer", "skipped", "skipped_in_row", "typical_norm")
    found = {"params": state.parameters, "training": {name: getattr(state, name) for name in fields}}
    return found | ({"average": state.average} if state.average else {})


def _described(config, tokenizer, arrays: dict[str, dict]) -> dict:
    """The part of the `run` item that inference needs, and the version that wrote it."""
    return {
        "config": to_json(config),
        "tokenizer": base64.b64encode(tokenizer.model_bytes).decode(),
        "jax": jax.__version__,
        "checksums": {item: checksums(tree) for item, tree in arrays.items()},
    }


def _weights(config, params) -> ocp.args.StandardSave:
    """Every layer of a stack is a piece by itself, which export then reads alone."""
    stacked = tuple(f"{path}/" for path in stacks(config.model))
    axes = {path: (0,) if path.startswith(stacked) else () for path in params}
    return ocp.args.StandardSave(params, {path: ocp.SaveArgs(shard_axes=axes[path]) for path in params})


def save(manager, state, config, tokenizer, data_state: dict) -> None:
    """Starts to save `state` under its step; returns once the arrays are copied to the host.

    Args:
      manager: see `make_manager`.
      state: kosmos_jax.training.state.TrainState.
      config, tokenizer: go into the checkpoint.
      data_state: what resuming the data needs: next step, seed, fingerprint.

    Raises:
      Exception: of many kinds, what went wrong with this save or with the one before it.
    """
    arrays = items(state)
    run = {"arrays": shapes_of(arrays), "data": data_state, **_described(config, tokenizer, arrays)}
    args = {item: _weights(config, tree) for item, tree in arrays.items() if item != "training"}
    args |= {"training": ocp.args.StandardSave(arrays["training"]), "run": ocp.args.JsonSave(run)}
    manager.save(int(state.step), args=ocp.args.Composite(**args), force=True)


def save_weights(workdir, params, config, tokenizer) -> None:
    """A checkpoint of weights alone, as step 0: inference, export and `init.checkpoint` take it.

    Args:
      workdir: a new one.
      params: path -> array.
      config, tokenizer: go into the checkpoint.
    """
    run = _described(config, tokenizer, {"params": params})
    with make_manager(workdir) as manager:
        manager.save(0, args=ocp.args.Composite(params=_weights(config, params), run=ocp.args.JsonSave(run)))


def read_run(folder: Path) -> dict:
    """The `run` item of a step's folder."""
    return json.loads((folder / "run" / "metadata").read_text())


def placed(tree, shardings):
    """A tree of ShapeDtypeStruct with the shapes and dtypes of one tree and the shardings of another."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def shapes_of(arrays: dict[str, dict]) -> dict[str, list[int]]:
    """Shape of every array by its name, e.g. {"params.embedding": [64007, 2048], ...}."""
    return {name: list(leaf.shape) for name, leaf in names(arrays).items()}


def refuse_other_model(folder, before: dict[str, list[int]], now: dict[str, list[int]]) -> None:
    """A checkpoint of another model or optimizer is not damaged; it belongs to another run.

    Args:
      before, now: shapes of the checkpoint's arrays and of those that are wanted, by name.

    Raises:
      UserError: they differ.
    """
    differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differ:
        shown = "; ".join(f"{name} {before.get(name, 'absent')}, now {now.get(name, 'absent')}" for name in differ[:3])
        raise UserError(
            f"{folder} holds another model or optimizer than the config ({len(differ)} arrays differ: {shown}). "
            "Use another --workdir, or the config.json in this one"
        )


def read_item(folder: Path, item: str, wanted):
    """The arrays of one item, of a step's folder, not checked yet.

    No process waits for another here, so one that fails can say so.

    Args:
      wanted: tree of ShapeDtypeStruct with shardings.

    Raises:
      Exception: of many kinds, from Orbax and TensorStore, when it cannot be read.
    """
    with closing(ocp.StandardCheckpointHandler()) as handler:
        return handler.restore(folder / item, args=ocp.args.StandardRestore(wanted))


def assert_intact(folder: Path, found: dict[str, int], written: dict[str, int]) -> None:
    """Raises Damaged where a checksum is not the one that was written.

    Args:
      folder: of an item, for the message.
      found: checksums of what was read, by name.
      written: checksums that stand in the checkpoint.
    """
    differ = [name for name, number in found.items() if written.get(name) != number]
    if differ:
        raise Damaged(
            f"{folder} is damaged: {len(differ)} of {len(found)} arrays are not what was written, such as {differ[0]}. "
            "Take another step's folder"
        )


def first_line(error: Exception) -> str:
    """An error in one line of bounded length."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first[:200]}"


@dataclass(frozen=True)
class Record:
    """The small part of a checkpoint.

    Attributes:
      config: the config of the run that made it.
      tokenizer: its tokenizer.
      step: updates done.
      directory: the step's folder.
      checksums: item -> name -> checksum of each array.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    step: int
    directory: Path
    checksums: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Restored(Record):
    """What inference needs of a checkpoint: with `params`, path -> array, the moving average where there is one."""

    params: dict[str, jax.Array]


def committed_steps(folder: Path) -> list[int]:
    """The steps in a `checkpoints` folder whose writing came to its end, rising."""
    return [step for step in _steps(folder) if (folder / str(step) / COMMITTED).is_file()]


def unfinished_steps(folder: Path) -> list[int]:
    """The steps in a `checkpoints` folder that a kill or an error left without the file that commits them, rising."""
    return [step for step in _steps(folder) if not (folder / str(step) / COMMITTED).is_file()]


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder.iterdir() if folder.is_dir() else ()) if path.name.isdigit())


def step_directory(path) -> Path:
    """The folder of one step, given it, a `checkpoints` folder (the newest step) or a workdir.

    Raises:
      UserError: there is nothing of the kind.
    """
    path = as_path(path, "--checkpoint")
    with reading(path):
        return _step_directory(path)


def _step_directory(path: Path) -> Path:
    if not path.exists() or not path.is_dir():
        siblings = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        raise UserError(f"--checkpoint {path}: no such folder; beside it there is {', '.join(siblings) or 'nothing'}")
    if (path / COMMITTED).is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if steps := committed_steps(folder):
        return folder / str(steps[-1])
    if (path / "params").is_dir():
        raise UserError(f"--checkpoint {path}: its writing did not come to the end ({COMMITTED} is missing)")
    raise UserError(f"--checkpoint {path}: no checkpoint in it; give a workdir, its checkpoints/, or one step's folder")


def read_record(path) -> Record:
    """What a checkpoint says of itself, without its arrays.

    Raises:
      UserError: nothing there, or unreadable.
    """
    directory = step_directory(path)
    with reading(directory):
        run = read_run(directory)
        config = from_json(run["config"])
        tags, found = config.data.tokenizer.kosmos2_tags, modalities(config.model)
        tokenizer = Tokenizer(base64.b64decode(run["tokenizer"]), tags, found)
        step = run.get("data", {}).get("next_step", 0)
        return Record(config, tokenizer, step, directory, run["checksums"])


@contextmanager
def reading(directory: Path):
    """Turns what goes wrong inside the block into a UserError: the checkpoint cannot be read."""
    try:
        yield
    except storage_errors() as error:
        raise from_os(f"{directory} cannot be read", error) from error
    except (ValueError, KeyError, AttributeError) as error:  # the last: a config of an earlier version
        raise UserError(f"{directory} cannot be read as a checkpoint: {first_line(error)}") from error


def restore(path, shardings_of=None) -> Restored:
    """Reads weights, config and tokenizer of a checkpoint.

    Args:
      path: see `step_directory`.
      shardings_of: function from (config, path -> ShapeDtypeStruct) to path -> Sharding; None puts all on one device.

    Raises:
      UserError: nothing there, or unreadable.
    """
    record, weights = open_weights(path, shardings_of)
    return Restored(**vars(record), params=dict(weights))


def open_weights(path, shardings_of=None) -> tuple[Record, Iterator[tuple[str, jax.Array]]]:
    """As `restore`, but the weights come one after another, so that they need not all be there at the same time.

    Args:
      path, shardings_of: see `restore`.

    Returns:
      (Record, iterator over pairs of path and array, which raises the same).
    """
    record = read_record(path)
    shapes = abstract_model(record.config.model)[1]
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = shardings_of(record.config, shapes) if shardings_of else {name: device for name in shapes}
    return record, _read_weights(record, placed(shapes, shardings))


def restore_weights(path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The weights of a checkpoint; the moving average where there is one.

    Args:
      path: see `step_directory`.
      wanted: path -> shape and sharding, all parameters of the model.

    Raises:
      UserError: nothing there, unreadable, damaged, or weights of another model.
    """
    return dict(_read_weights(read_record(path), wanted))


def _read_weights(record: Record, wanted) -> Iterator[tuple[str, jax.Array]]:
    directory, averaged = record.directory, record.checksums.get("average", {})
    with reading(directory):
        with closing(ocp.StandardCheckpointHandler()) as handler:
            stored = handler.metadata(directory / "params").tree
        refuse_other_model(directory, shapes_of({"params": stored}), shapes_of({"params": wanted}))
        for item, sums in (("average", averaged), ("params", record.checksums["params"])):
            left = [name for name in sums if item == "average" or name not in averaged]
            while left:
                part, size = {}, 0
                while left and (not part or size < TOGETHER):
                    name = left.pop(0)
                    part[name] = wanted[name]
                    size += wanted[name].size * wanted[name].dtype.itemsize
                found = _read_some(directory / item, part)
                assert_intact(directory / item, checksums(found), {name: sums[name] for name in part})
                while found:
                    yield found.popitem()


def _read_some(folder: Path, wanted):
    """Some arrays of an item; see `read_item`."""
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    with closing(ocp.PyTreeCheckpointHandler()) as handler:
        return handler.restore(
            folder, args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True)
        )
