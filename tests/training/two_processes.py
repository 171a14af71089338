"""What two processes of a job do when only one of them has trouble; run by test_agreement.py, once as each process.

python -m tests.training.two_processes WORKDIR COORDINATOR PROCESS_ID
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from jax.experimental import multihost_utils

from kosmos_jax import checkpoint
from kosmos_jax.errors import PassingError
from kosmos_jax.parallel import distributed

WAIT = 60.0


def slow_host(process_id: str) -> list[str]:
    """What is logged when the host of process 1 becomes slow after six steps."""
    from kosmos_jax.training import spread

    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    spread.log.addHandler(handler)
    watched = spread.Spread(every=2)
    for step in range(1, 11):
        slow = step in (7, 8)
        if slow and process_id == "1":
            time.sleep(0.3)  # it is the last to tell, too
        watched.add(step, 3.0 if slow else 0.5, 2.8 if slow and process_id == "1" else 0.1, 0.0)
        distributed.exchange("a step", "", WAIT)
    return said


def saves(process_id: str, made, folder: Path) -> list[int]:
    """The steps whose checkpoints are complete, when the disk of process 0 is broken for the second."""
    from kosmos_jax.training.saver import Saver

    from .test_resume import TOKENIZER, at_step

    done = []
    manager = checkpoint.make_manager(folder)
    saver = Saver(manager, max_failed=3, wait_seconds=WAIT, on_saved=done.append)
    probe = saver._probe
    for step in (1, 2, 3):
        saver._probe = (lambda: "OSError: No space left on device") if step == 2 else probe
        saver.save(at_step(made, step), made.config, TOKENIZER, {"next_step": step})
        saver.finish()
    saver.close()
    return done


def preemption_around_a_save(process_id: str, made, folder: Path) -> int:
    """After how many steps both stop, when SIGTERM reaches process 1 just after a checkpoint of a far higher step."""
    from .test_resume import TOKENIZER, at_step

    with checkpoint.make_manager(folder) as manager, distributed.Preemption() as preemption:
        for step in range(1, 500):
            if step == 5:
                checkpoint.save(manager, at_step(made, 5000), made.config, TOKENIZER, {"next_step": 5000})
                manager.wait_until_finished()
                if process_id == "1":
                    os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
            if preemption.requested():
                return step
    return 0


def main(workdir: str, coordinator: str, process_id: str):
    distributed.start(coordinator, 2, int(process_id))
    from kosmos_jax.training import resume

    from .test_resume import TOKENIZER, at_step, make

    made, workdir, told = make(), Path(workdir), {}
    with checkpoint.make_manager(workdir) as manager:
        for step in (3, 6, 9):
            checkpoint.save(manager, at_step(made, step), made.config, TOKENIZER, {"next_step": step})
            manager.wait_until_finished()
        read, resume.PAUSES = resume._read, (0.0, 0.0)

        def resumed(*errors):
            """The step that the run resumes from when reading fails so in process 1."""
            left = list(errors)

            def failing(*args):
                if process_id == "1" and left:
                    raise left.pop(0)
                return read(*args)

            resume._read = failing
            try:
                return int(resume.resume(workdir, manager, made.abstract, made.shardings, WAIT)[0].step)
            except PassingError as error:
                return str(error)

        told["one error"] = resumed(OSError(5, "Input/output error"))
        told["it stays"] = resumed(*[OSError(5, "Input/output error")] * 9)
        told["files"] = sorted(path.name for path in (workdir / "checkpoints").iterdir())
        told["damage"] = resumed(ValueError("DATA_LOSS: Error decoding"), ValueError("DATA_LOSS: Error decoding"))
        told["files after"] = sorted(path.name for path in (workdir / "checkpoints").iterdir())

    told["slow"] = slow_host(process_id)
    told["saves"] = saves(process_id, made, workdir / "saves")
    told["stopped at"] = preemption_around_a_save(process_id, made, workdir / "stopped")
    begin = time.monotonic()
    distributed.main_process_first(lambda: time.sleep(35) if process_id == "0" else time.sleep(32), "an index", WAIT)
    told["index"] = time.monotonic() - begin
    exchanged = multihost_utils.process_allgather(np.int32(process_id))  # collectives still work
    told["all"] = exchanged.tolist()
    if process_id == "1":
        print(json.dumps(told), flush=True)
        time.sleep(4)
    try:
        distributed.exchange("late", "here", seconds=1.0 if process_id == "0" else WAIT)
    except PassingError as error:
        told["late"] = str(error)
    if process_id == "0":
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
