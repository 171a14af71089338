"""Several processes as one job: who they are, and how they agree to stop."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping

import jax

from kosmos_jax.errors import OthersMissing, UserError

log = logging.getLogger(__name__)
# A process that does not answer for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 60
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def cluster(environment: Mapping[str, str]) -> str:
    """What started several processes here, by its variables: "Slurm", "Open MPI", "TPU" or "" for nothing.

    JAX looks for the same, but takes a few variables for the whole: a shell inside a Slurm allocation, where srun
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


def start(coordinator: str = "", processes: int = 0, process_id: int = -1) -> None:
    """Joins this process to the others of its job; to be called before anything asks JAX for devices.

    Args:
      coordinator: HOST:PORT of process 0, where nothing can be detected; else "".
      processes: how many there are, with `coordinator`.
      process_id: which one this is, with `coordinator`.

    Raises:
      UserError: only some of the three are given.
      OthersMissing: the others do not come.
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
    if not coordinator and not found:
        return
    if processes == 1:
        return
    # Without it, processes with CPU devices cannot sum anything.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    options = (
        dict(coordinator_address=coordinator, num_processes=processes, process_id=process_id) if coordinator else {}
    )
    if found == "Slurm":
        options |= _slurm_devices(os.environ)
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise OthersMissing(
            f"the processes of this job did not find each other ({found or coordinator}): {error}"
        ) from error
    log.info("process %d of %d (%s)", jax.process_index(), jax.process_count(), found or coordinator)


def _slurm_devices(environment: Mapping[str, str]) -> dict[str, list[int]]:
    """All GPUs for the one task of a node; JAX would give it a single one, as if there were a task for each."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if tasks.split("(")[0] == "1" and "," in visible:
        return {"local_device_ids": list(range(len(visible.split(","))))}
    return {}


def main_process_first(function):
    """Calls `function` in process 0 while the others wait, so that they find what it made."""
    from jax.experimental import multihost_utils

    result = function() if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("main process first")
    return result if jax.process_index() == 0 else function()


def leave_at_once(error: Exception) -> None:
    """With several processes: says what `error` is and ends this one; alone, does nothing.

    An orderly end would wait for the others, who wait for this one in the middle of a step.
    """
    if jax.process_count() == 1:
        return
    traced = os.environ.get("KOSMOS_TRACEBACK") or not isinstance(error, UserError | jax.errors.JaxRuntimeError)
    text = traceback.format_exc() if traced else str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        text += (
            "\nIf another process of the job ended first, its log says why; the same command goes on from the newest "
            "checkpoint"
        )
    print(f"kosmos train: error: process {jax.process_index()}: {text}", file=sys.stderr, flush=True)
    os._exit(getattr(error, "status", 1))


class Preemption:
    """Whether SIGTERM came to any process of the job, so that all end after the same step.

    With several processes JAX catches the signal and lets them agree on a step that none of them has passed.
    """

    def __enter__(self):
        self._here = False
        self._several = jax.process_count() > 1
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_here", True))
        return self

    def __exit__(self, *_):
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; every process asks after every step."""
        if not self._several:
            return self._here
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
