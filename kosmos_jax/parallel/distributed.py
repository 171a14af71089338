"""Several processes as one job: who they are, and how they agree to stop."""

import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager

import jax

from kosmos_jax.errors import PassingError, UserError
from kosmos_jax.paths import storage_errors

log = logging.getLogger(__name__)
# A process that does not answer for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 60
# How long the processes of a job wait for each other while they generate.
WAIT_SECONDS = 600
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def cluster(environment: Mapping[str, str]) -> str:
    """What started several processes here, by its variables: "Slurm", "Open MPI", "TPU" or "" for nothing.

    JAX looks for the same, but takes a few variables for all of them: a shell inside a Slurm allocation, where srun
    started nothing, is one process.
    """
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and any(name in environment for name in SLURM[3:]):
        missing = [name for name in SLURM if name not in environment]
        if not missing:
            return "Slurm"
        log.warning("Slurm did not start this process (%s not set): it runs alone", ", ".join(missing))
    if int(environment.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "Open MPI"
    hosts = environment.get("TPU_WORKER_HOSTNAMES") or environment.get("TPU_PROCESS_ADDRESSES") or ""
    return "TPU" if "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1 else ""


def start(
    coordinator: str = "", processes: int = 0, process_id: int = -1, join_seconds: float = 300, verb: str = "train"
) -> None:
    """Joins this process to the others of its job; call it before anything asks JAX for devices.

    When the others do not come, the process ends with status 1 and a message.

    Args:
      coordinator: HOST:PORT of process 0, where nothing can be detected; else "".
      processes: how many there are, with `coordinator`.
      process_id: which one this is, with `coordinator`.
      join_seconds: how long to wait for the others.
      verb: of the command, for messages.

    Raises:
      UserError: only some of the three are given.
      PassingError: the others cannot be reached.
    """
    given = (bool(coordinator), processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise UserError("--coordinator, --processes and --process-id belong together: give all three or none")
    if coordinator and (":" not in coordinator or process_id >= processes):
        raise UserError(
            f"--coordinator {coordinator} --processes {processes} --process-id {process_id}: the first is HOST:PORT, "
            "and ids count from 0"
        )
    found = "" if coordinator else cluster(os.environ)
    place = found or coordinator
    if not place or processes == 1:
        return
    # Without it, processes with CPU devices cannot sum anything.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    options = _slurm_devices(os.environ) if found == "Slurm" else {}
    if coordinator:
        options = dict(coordinator_address=coordinator, num_processes=processes, process_id=process_id)
    try:
        with _time_limit(join_seconds, place, verb):
            jax.distributed.initialize(
                **options,
                initialization_timeout=math.ceil(join_seconds) + 60,  # ours comes first
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        raise PassingError(f"the processes of this job did not find each other ({place}): {error}") from error
    log.info("process %d of %d (%s)", jax.process_index(), jax.process_count(), place)


@contextmanager
def _time_limit(seconds: float, place: str, verb: str):
    """Ends the process when the block takes longer: JAX would abort it instead, with a stack trace of C++."""

    def end():
        print(
            f"kosmos {verb}: error: the processes of this job did not all come within {seconds:g} s ({place}). Look at "
            "the log of one that is missing" + (", or raise --config.training.join_seconds" * (verb == "train")),
            file=sys.stderr,
            flush=True,
        )
        os._exit(PassingError.status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _slurm_devices(environment: Mapping[str, str]) -> dict[str, list[int]]:
    """All GPUs for the one task of a node; JAX would give it a single one, as if there were a task for each."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if tasks.split("(")[0] == "1" and "," in visible:
        return {"local_device_ids": list(range(len(visible.split(","))))}
    return {}


def exchange(what: str, value: str, seconds: float) -> list[str]:
    """What every process says of `what`, in the order of the processes; each waits until all have said it.

    It goes over the coordination service and not over the devices, whose collectives end the process when another one
    takes longer than half a minute (CPU) or ten (GPU).

    Args:
      what: a short name, the same in all processes.
      value: this process's answer.
      seconds: how long to wait for the others.

    Raises:
      PassingError: some process did not answer in time.
    """
    if jax.process_count() == 1:
        return [value]
    _asked[what] += 1
    key, own, begin = f"kosmos/{what}/{_asked[what]}", jax.process_index(), time.monotonic()
    client().key_value_set(f"{key}/{own}", value)
    try:
        client().wait_at_barrier(key, timeout_in_ms=int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        missing = sorted(set(range(jax.process_count())) - said(key).keys())
        raise PassingError(
            f"process {own} waited {time.monotonic() - begin:.0f} s of {seconds:g} for the others: {what}; no answer "
            f"of process {', '.join(map(str, missing)) or 'any'}: {str(error).splitlines()[0]}"
        ) from error
    answers = said(key)
    # All have read the answers before these: nobody gets past a barrier while others are still at the one before.
    if _asked[what] > 1:
        client().key_value_delete(f"kosmos/{what}/{_asked[what] - 1}/{own}")
    return [answers[process] for process in range(jax.process_count())]


_asked: Counter = Counter()


class Messages:
    """Messages of process 0 to all others, in their order, over the coordination service.

    Nothing runs on the devices while the others wait, so a wait may be as long as it will.
    """

    TOGETHER = 64  # messages after which all meet, and those before are deleted
    LOOK_SECONDS = 60

    def __init__(self, name: str, seconds: float, state: Callable[[], str]):
        """Takes the first message next.

        Args:
          name: the same in all processes.
          seconds: how long one waits for the others where all meet.
          state: says there what has to be the same in all of them.
        """
        self._name, self._seconds, self._state, self._count = name, seconds, state, 0

    def send(self, data: bytes):
        """In process 0: tells the others."""
        client().key_value_set_bytes(self._key(), data)
        self._next()

    def receive(self) -> bytes:
        """In another process: the next message, once it comes.

        Raises:
          PassingError: the processes met, and their states differ.
          JaxRuntimeError: process 0 is gone.
        """
        while True:
            try:
                data = client().blocking_key_value_get_bytes(self._key(), 1000 * self.LOOK_SECONDS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            else:
                self._next()
                return data

    def _key(self) -> str:
        return f"kosmos/{self._name}/{self._count // self.TOGETHER}/{self._count}"

    def _next(self):
        self._count += 1
        if self._count % self.TOGETHER == 0:
            states = exchange(f"{self._name} so far", self._state(), self._seconds)
            if len(set(states)) > 1:
                raise PassingError(f"the processes no longer do the same; by process: {', '.join(states)}")
            if jax.process_index() == 0:
                client().key_value_delete(f"kosmos/{self._name}/{self._count // self.TOGETHER - 1}")


def client():
    """The client of the coordination service, which every process of a job has; JAX shows no other way to it."""
    from jax._src.distributed import global_state

    return global_state.client


def said(key: str) -> dict[int, str]:
    """What stands under `key`/PROCESS, by process."""
    return {int(name.rpartition("/")[2]): value for name, value in client().key_value_dir_get(key)}


def main_process_first(function: Callable, what: str, seconds: float):
    """Calls `function` in process 0 while the others wait, so that they find what it made; returns when all are done.

    Args:
      function: without arguments.
      what: what it does, for messages.
      seconds: how long the others wait.

    Raises:
      PassingError: process 0 took longer.
    """
    first = jax.process_index() == 0
    result = function() if first else None
    exchange(what, "done", seconds)
    result = result if first else function()
    exchange(what, "done", seconds)  # it may take the others as long, where each has a disk of its own
    return result


def leave_at_once(error: Exception, verb: str = "train") -> None:
    """With several processes: says what `error` is and ends this one; alone, does nothing.

    An orderly end would wait for the others, who wait for this one in the middle of a step.
    """
    if jax.process_count() == 1:
        return
    plain = isinstance(error, (UserError, *storage_errors(), jax.errors.JaxRuntimeError))
    traced = os.environ.get("KOSMOS_TRACEBACK") or not plain
    text = traceback.format_exc() if traced else str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        text += (
            "\nIf another process of the job ended first, its log says why; the same command goes on from what is there"
        )
    print(f"kosmos {verb}: error: process {jax.process_index()}: {text}", file=sys.stderr, flush=True)
    os._exit(getattr(error, "status", 1))


class Interrupted(Exception):
    """SIGTERM came while something ran that may be cut short."""


class Preemption:
    """Whether SIGTERM came to any process of the job, so that all end after the same step.

    With several processes JAX catches the signal and lets them agree on a step that none of them has passed.
    """

    def __enter__(self):
        self._here, self._interruptible, self._asked = False, False, 0
        self._several = jax.process_count() > 1
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_):
        self._here = True
        if self._interruptible:
            self._interruptible = False
            raise Interrupted

    def requested(self) -> bool:
        """Whether to stop now; every process asks at the same points, such as after every step."""
        if not self._several:
            return self._here
        from jax.experimental import multihost_utils

        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)

    @contextmanager
    def interruptible(self):
        """In one process alone, SIGTERM raises Interrupted in the block, which has to leave nothing half done."""
        self._interruptible = True
        try:
            if self._here:
                raise Interrupted
            yield
        finally:
            self._interruptible = False
