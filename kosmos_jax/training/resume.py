"""Which checkpoint a run resumes from: the newest one that all processes can read.

A disk that fails for a moment is asked again and costs nothing. A checkpoint counts as damaged only when reading it
failed twice in a row and every byte of it can be read. Then the one before it is taken, and only after that one was
read is the damaged one renamed: a run never loses its checkpoints to an error in reading them.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from kosmos_jax import checkpoint
from kosmos_jax.checksums import checksums
from kosmos_jax.errors import PassingError, UserError
from kosmos_jax.parallel.distributed import exchange
from kosmos_jax.paths import as_path, storage_errors
from kosmos_jax.training import ledger
from kosmos_jax.training.lines import read_lines

log = logging.getLogger(__name__)
# Seconds before a disk that failed is asked again: most are back within a minute or two.
PAUSES = (1, 4, 15, 40, 60)
# How errors of a disk, also of one on the network, end up in TensorStore's messages.
DISK_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EACCES, errno.EPERM, errno.ELOOP)
BUCKET_ERRORS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED")
READ, DAMAGED, FAILED, REFUSED = "read", "damaged", "failed", "refused"


def resume(workdir, manager, abstract_state, shardings, wait_seconds: float):
    """The newest state that all processes can read, or None for a run that has not saved anything yet.

    Args:
      workdir: of the run.
      manager: see `checkpoint.make_manager`.
      abstract_state: TrainState of ShapeDtypeStruct.
      shardings: TrainState of NamedSharding.
      wait_seconds: how long processes wait for each other.

    Returns:
      (state, run record), or None.

    Raises:
      UserError: none can be read, they hold another model, or they are gone.
      PassingError: the disk fails.
    """
    wanted = checkpoint.placed(abstract_state, shardings)
    folder = as_path(manager.directory)
    own = json.dumps(checkpoint.committed_steps(folder))
    steps = json.loads(exchange("steps to resume from", own, wait_seconds)[0])
    if jax.process_index() == 0 and (unfinished := checkpoint.unfinished_steps(folder)):
        log.warning("%s: the steps %s were never finished; they are not read, and may be deleted", folder, unfinished)
    damaged = []
    for step in reversed(steps):
        outcome, found = _attempt(folder / str(step), wanted)
        answers = [answer.split(" ", 1) for answer in exchange(f"read step {step}", outcome, wait_seconds)]
        for bad, error in ((FAILED, PassingError), (REFUSED, UserError)):
            if said := [_told(process, text) for process, (kind, text) in enumerate(answers) if kind == bad]:
                raise error(said[0])
        trouble = [_told(process, text) for process, (kind, text) in enumerate(answers) if kind == DAMAGED]
        if not trouble:
            trouble = _changed(folder / str(step), *found)  # all processes come here, for each has only a part
        if not trouble:
            _set_aside(folder, damaged, manager, wait_seconds)
            return _state(wanted, found[0]), found[1]
        log.error("CHECKPOINT %s CANNOT BE READ: %s", folder / str(step), trouble[0])
        damaged.append(step)
        del found  # two states may not fit on the devices
    if steps:
        raise UserError(f"{folder}: none of the checkpoints {steps} can be read; start in another --workdir")
    _refuse_lost_checkpoints(as_path(workdir))
    return None


def _told(process: int, text: str) -> str:
    return f"process {process}: {text}" if jax.process_count() > 1 else text


def _attempt(folder: Path, wanted):
    """Reads one step.

    Returns:
      ("read", "damaged", "failed" or "refused", a space and a message; (item -> arrays, run record) or None).
    """
    suspect = False  # whether it could not be read just before, and the disk had said nothing
    for pause in (*PAUSES, None):
        try:
            return f"{READ} ", _read(folder, wanted)
        except UserError as error:
            return f"{REFUSED} {error}", None
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # not the checkpoint's fault
        except Exception as error:  # noqa: BLE001  Orbax and TensorStore raise many kinds, for errors of the disk too.
            found = checkpoint.first_line(error)
            trouble = _disk_error(error) or (_unreadable_byte(folder) if suspect else None)
        if suspect and not trouble:
            return f"{DAMAGED} {found}", None
        suspect = not trouble
        if pause is not None:
            log.warning("%s cannot be read (%s): tried again in %d s", folder, trouble or found, pause)
            time.sleep(pause)
    return (
        f"{FAILED} {folder} cannot be read at the moment ({trouble}; {found}). Nothing was changed; start again when "
        "the disk answers"
    ), None


def _read(folder: Path, wanted):
    run = checkpoint.read_run(folder)
    if "arrays" not in run:
        raise UserError(
            f"{folder} holds weights and no state of a training run; start from it in a new --workdir with "
            f"--config.init.checkpoint={folder.parent.parent}"
        )
    arrays = checkpoint.items(wanted)
    checkpoint.refuse_other_model(folder, run["arrays"], checkpoint.shapes_of(arrays))
    return {item: checkpoint.read_item(folder, item, tree) for item, tree in arrays.items()}, run


def _changed(folder: Path, arrays, run) -> list[str]:
    """What is not as it was written."""
    try:
        for item, tree in arrays.items():
            checkpoint.assert_intact(folder / item, checksums(tree), run["checksums"][item])
    except checkpoint.Damaged as error:
        return [str(error)]
    return []


def _state(wanted, arrays):
    params = arrays["params"]
    return type(wanted)(
        trainable={path: params[path] for path in wanted.trainable},
        frozen={path: params[path] for path in wanted.frozen},
        average=arrays.get("average", {}),
        **arrays["training"],
    )


def _disk_error(error: Exception) -> str | None:
    """What the disk said, if that is why reading failed; TensorStore has it in the message alone."""
    said = str(error)
    if isinstance(error, storage_errors()) and not isinstance(error, FileNotFoundError):
        return said
    return next((text for text in (*map(os.strerror, DISK_ERRORS), *BUCKET_ERRORS) if text in said), None)


def _unreadable_byte(folder: Path) -> Exception | None:
    """What the disk says when every file of a checkpoint is read to its end; None when it gives all of them."""
    try:
        (folder / checkpoint.COMMITTED).read_bytes()  # a disk may not show the folder at all
        for path in _files(folder):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
    except storage_errors() as error:
        return error
    return None


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)


def _set_aside(folder: Path, steps: list[int], manager, wait_seconds: float) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again; nothing is deleted."""
    if not steps:
        return
    if jax.process_index() == 0:
        for step in steps:
            aside = _free_name(folder / f"unreadable-{step}")
            log.error("CHECKPOINT %s IS DAMAGED and is set aside as %s", folder / str(step), aside.name)
            try:
                (folder / str(step)).rename(aside)
            except storage_errors() as error:  # such as a bucket's limit of files in a folder
                log.error("%s cannot be renamed: %s. It will be replaced", folder / str(step), error)
    exchange("damaged checkpoints are set aside", "", wait_seconds)
    manager.reload()


def _free_name(path: Path) -> Path:
    names = (path, *(path.with_name(f"{path.name}-{n}") for n in range(2, 1000)))
    return next(name for name in names if not name.exists())


def _last_metrics(workdir: Path) -> int:
    return max((line.get("step", 0) for line in read_lines(workdir / "metrics.jsonl")), default=0)


def _refuse_lost_checkpoints(workdir: Path) -> None:
    """A run that saved something and has no checkpoint any more must not begin anew in silence.

    Raises:
      UserError: it did.
    """
    if unreadable := sorted(path.name for path in (workdir / "checkpoints").glob("unreadable-*")):
        there = f"checkpoints/ holds {', '.join(unreadable)}"
    elif saved := ledger.last(workdir, "saved"):
        there = f"step {saved} was saved here"
    # A run that was killed before its first checkpoint has metrics too, but the ledger knows of their steps.
    elif (measured := _last_metrics(workdir)) > ledger.last(workdir, "step"):
        there = f"metrics.jsonl has {measured} steps of another run"
    else:
        return
    raise UserError(
        f"--workdir {workdir}: {there} and there is no checkpoint to resume from. Bring one back into checkpoints/, or "
        f"take another --workdir. To begin anew here, move {ledger.NAME}, metrics.jsonl and checkpoints/ away"
    )
