"""Checkpoints: asynchronous, sharded, and whole: weights, optimizer, step, data state, config and tokenizer in one.

A step's folder holds these Orbax items:

    params    path -> array: what inference, evaluation and export read
    average   the moving average of the weights, when training.ema_decay is set; inference then prefers it
    training  optimizer state and counters: what resuming needs besides
    run       JSON: config, tokenizer, the data pipeline's few integers, versions

It restores onto any mesh: shapes and shardings come from the caller, each process reads only its own bytes.
"""

import base64
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.config import from_json, to_json
from kosmos_jax.errors import UserError
from kosmos_jax.model import STACKS, abstract_model

log = logging.getLogger(__name__)
ITEMS = ("params", "average", "training", "run")


def make_manager(workdir, keep_last=None, keep_every=None) -> ocp.CheckpointManager:
    """Orbax's manager of `workdir`/checkpoints: saves in the background, keeps the last few and every K-th."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep_last or None,
        keep_period=keep_every or None,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options, item_names=ITEMS)


def run_record(config, tokenizer, abstract_state, data_state: dict) -> dict:
    """The `run` item."""
    return {
        "arrays": _shapes(abstract_state),
        "data": data_state,
        **_described(config, tokenizer),
    }


def _described(config, tokenizer) -> dict[str, str]:
    """The part of the `run` item that inference needs, and the version that wrote it."""
    encoded = base64.b64encode(tokenizer.model_bytes).decode()
    return {"config": to_json(config), "tokenizer": encoded, "jax": jax.__version__}


def _training_part(state) -> dict:
    fields = ("step", "optimizer", "skipped", "skipped_in_row", "typical_norm")
    return {name: getattr(state, name) for name in fields}


def _weights(params) -> ocp.args.StandardSave:
    """Every layer of a stack is a piece by itself, which export then reads alone."""
    axes = {path: (0,) if path.startswith(STACKS) else () for path in params}
    return ocp.args.StandardSave(params, {path: ocp.SaveArgs(shard_axes=axes[path]) for path in params})


def save(manager, state, run: dict) -> None:
    """Starts to save `state` under its step; returns once the arrays are copied to the host."""
    items = {
        "params": _weights(state.parameters),
        "training": ocp.args.StandardSave(_training_part(state)),
        "run": ocp.args.JsonSave(run),
    }
    if state.average:
        items["average"] = _weights(state.average)
    manager.save(int(state.step), args=ocp.args.Composite(**items), force=True)


def save_weights(workdir, params, config, tokenizer) -> None:
    """A checkpoint of weights alone, as step 0: inference, export and `init.checkpoint` take it."""
    items = {"params": _weights(params), "run": ocp.args.JsonSave(_described(config, tokenizer))}
    with make_manager(workdir) as manager:
        manager.save(0, args=ocp.args.Composite(**items))


def _run_of(manager, step: int) -> dict:
    return manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]


def placed(tree, shardings):
    """A tree of ShapeDtypeStruct with the shapes and dtypes of one tree and the shardings of another."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def _shapes(state) -> dict[str, list[int]]:
    """Shape of every array of a state by its name, e.g. {".trainable['embedding']": [64007, 2048], ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): list(leaf.shape) for path, leaf in leaves}


def _refuse_other_model(folder, before: dict[str, list[int]], now: dict[str, list[int]]) -> None:
    """A checkpoint of another model or optimizer is not damaged; it belongs to another run.

    Args:
      before, now: shapes of the checkpoint's arrays and of those that are wanted, by name.
    """
    differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differ:
        shown = "; ".join(f"{name} {before.get(name, 'absent')}, now {now.get(name, 'absent')}" for name in differ[:3])
        raise UserError(
            f"{folder} holds another model or optimizer than the config ({len(differ)} arrays differ: {shown}). "
            "Use another --workdir, or the config.json in this one"
        )


def resume(manager, abstract_state, shardings):
    """The newest state that can be read whole, or None when there is no checkpoint.

    A checkpoint that cannot be read (a disk filled up, a file was cut short) is set aside under another name, loudly,
    and the one before it is taken: losing some steps beats losing the run.

    Args:
      manager: see `make_manager`.
      abstract_state: TrainState of ShapeDtypeStruct.
      shardings: TrainState of NamedSharding.

    Returns:
      (state, run record), or None.

    Raises:
      UserError: there are checkpoints and none can be read, or they hold another model.
    """
    wanted = placed(abstract_state, shardings)
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        folder = Path(manager.directory) / str(step)
        try:
            run = _run_of(manager, step)
            if "arrays" not in run:
                raise UserError(
                    f"{folder} holds weights and no state of a training run; start from it in a new --workdir with "
                    f"--config.init.checkpoint={folder.parent.parent}"
                )
            _refuse_other_model(folder, run["arrays"], _shapes(abstract_state))
            args = {
                "params": ocp.args.StandardRestore(wanted.parameters),
                "training": ocp.args.StandardRestore(_training_part(wanted)),
            }
            if wanted.average:
                args["average"] = ocp.args.StandardRestore(wanted.average)
            found = manager.restore(step, args=ocp.args.Composite(**args))
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # not the checkpoint's fault
        except Exception as error:  # noqa: BLE001  Orbax raises many kinds; any of them means: not this one.
            aside = _free_name(folder.with_name(f"unreadable-{step}"))
            log.error("CHECKPOINT %s CANNOT BE READ, it is set aside as %s: %s", folder, aside.name, _first_line(error))
            if jax.process_index() == 0:
                folder.rename(aside)
            manager.reload()
            continue
        params = found["params"]
        trainable = {path: params[path] for path in abstract_state.trainable}
        frozen = {path: params[path] for path in abstract_state.frozen}
        average = found["average"] if wanted.average else {}
        state = type(abstract_state)(trainable=trainable, frozen=frozen, average=average, **found["training"])
        return state, run
    if steps:
        raise UserError(f"{manager.directory}: none of the checkpoints {steps} can be read; start in another --workdir")
    return None


def _free_name(path: Path) -> Path:
    names = (path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000)))
    return next(name for name in names if not name.exists())


def _first_line(error) -> str:
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
    """

    config: ConfigDict
    tokenizer: Tokenizer
    step: int
    directory: Path


@dataclass(frozen=True)
class Restored(Record):
    """What inference needs of a checkpoint: with `params`, path -> array, the moving average where there is one."""

    params: dict[str, jax.Array]


def step_directory(path) -> Path:
    """The folder of one step, given it, a `checkpoints` folder (the newest step) or a workdir.

    Raises:
      UserError: there is nothing of the kind.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        siblings = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        raise UserError(f"--checkpoint {path}: no such folder; beside it there is {', '.join(siblings) or 'nothing'}")
    if (path / "params").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [int(p.name) for p in folder.iterdir() if re.fullmatch(r"\d+", p.name) and (p / "params").is_dir()]
    if not steps:
        raise UserError(
            f"--checkpoint {path}: no checkpoint in it; give a workdir, its checkpoints/, or one step's folder"
        )
    return folder / str(max(steps))


def read_record(path) -> Record:
    """What a checkpoint says of itself, without its arrays.

    Raises:
      UserError: nothing there, or unreadable.
    """
    directory = step_directory(path)
    with reading(directory):
        options = ocp.CheckpointManagerOptions(read_only=True)
        with ocp.CheckpointManager(directory.parent, options=options, item_names=ITEMS) as manager:
            run = _run_of(manager, int(directory.name))
        config = from_json(run["config"])
        tokenizer = Tokenizer(base64.b64decode(run["tokenizer"]), kosmos2_tags=config.data.tokenizer.kosmos2_tags)
    return Record(config, tokenizer, int(directory.name), directory)


@contextmanager
def reading(directory: Path):
    """Turns what goes wrong inside the block into a UserError: the checkpoint cannot be read."""
    try:
        yield
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{directory} cannot be read as a checkpoint: {_first_line(error)}") from error


def restore(path, shardings_of=None) -> Restored:
    """Reads weights, config and tokenizer of a checkpoint.

    Args:
      path: see `step_directory`.
      shardings_of: function from (config, path -> ShapeDtypeStruct) to path -> Sharding; None puts all on one device.

    Raises:
      UserError: nothing there, or unreadable.
    """
    record = read_record(path)
    shapes = abstract_model(record.config.model)[1]
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = shardings_of(record.config, shapes) if shardings_of else {name: device for name in shapes}
    params = restore_weights(record.directory, placed(shapes, shardings))
    return Restored(**vars(record), params=params)


def restore_weights(path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The weights of a checkpoint; the moving average where there is one.

    Args:
      path: see `step_directory`.
      wanted: path -> shape and sharding, all parameters of the model.

    Raises:
      UserError: nothing there, unreadable, or weights of another model.
    """
    directory = step_directory(path)
    averaged = directory / "average"
    with reading(directory), ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(directory / "params").item_metadata
        before, now = ({name: list(leaf.shape) for name, leaf in tree.items()} for tree in (stored, wanted))
        _refuse_other_model(directory, before, now)
        params = checkpointer.restore(directory / "params", wanted)
        if averaged.is_dir():
            stored = checkpointer.metadata(averaged).item_metadata
            params |= checkpointer.restore(averaged, {name: leaf for name, leaf in wanted.items() if name in stored})
    return params
