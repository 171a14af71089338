"""The checkpoints of a run while it trains: one is written at a time, and one that fails is tried again."""

import contextlib
import json
import logging
import time

import jax

from kosmos_jax import checkpoint
from kosmos_jax.errors import PassingError, UserError
from kosmos_jax.parallel.distributed import exchange
from kosmos_jax.paths import as_path, remove_folder, storage_errors

log = logging.getLogger(__name__)
# Seconds before a checkpoint that failed is tried again, doubled each time; and before the last one of a run is.
PAUSE, LAST_PAUSE = 30, 10
PROBE_BYTES = 1 << 16


class Saver:
    """Starts checkpoints and sees them through.

    Args:
      manager: see `checkpoint.make_manager`.
      max_failed: the run ends when so many checkpoints in a row failed.
      wait_seconds: how long processes wait for each other.
      on_saved: function (step), called when a checkpoint is complete.

    Attributes:
      retry: whether the last one failed and it is time to try again.
    """

    def __init__(self, manager, max_failed: int, wait_seconds: float, on_saved):
        self.manager, self.retry = manager, False
        self._max_failed, self._wait_seconds, self._on_saved = max_failed, wait_seconds, on_saved
        self._writing, self._failed, self._next_try = None, 0, 0.0

    def save(self, state, config, tokenizer, data_state: dict) -> None:
        """Starts to write the state, once the checkpoint before it is complete or has failed.

        Args:
          state, config, tokenizer, data_state: see `checkpoint.save`.

        Raises:
          PassingError: too many failed in a row.
        """
        self.finish()
        self._writing, self.retry = int(state.step), False
        # Inside Orbax processes wait for each other on the devices: what commonly fails is tried and told before.
        trouble = self._probe() if jax.process_index() == 0 else ""
        if exchange("can a checkpoint be written", trouble, self._wait_seconds)[0]:
            return self._ended(trouble)
        try:
            checkpoint.save(self.manager, state, config, tokenizer, data_state)
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # noqa: BLE001  Orbax raises many kinds; any of them means: not saved.
            self._ended(checkpoint.first_line(error))

    def _probe(self) -> str:
        """What the disk says to a small file; "" when it takes it."""
        probe = as_path(self.manager.directory) / "probe"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
            probe.unlink()
            return ""
        except storage_errors() as error:
            with contextlib.suppress(*storage_errors()):
                probe.unlink()
            return checkpoint.first_line(error)

    def poll(self) -> None:
        """Looks whether the checkpoint that is being written has ended, or one that failed is to be tried again.

        Every process asks at the same points.

        Raises:
          PassingError: too many failed in a row.
        """
        if self._writing is not None:
            busy = self.manager.is_saving_in_progress()
            if "busy" not in exchange("is the checkpoint written", "busy" if busy else "ended", self._wait_seconds):
                self.finish()
        elif self._failed:
            due = str(time.monotonic() >= self._next_try)
            self.retry = exchange("is it time to try again", due, self._wait_seconds)[0] == str(True)

    def finish(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
          PassingError: too many failed in a row.
        """
        if self._writing is None:
            return
        error = ""
        try:
            self.manager.wait_until_finished()
        except Exception as raised:  # noqa: BLE001  as above
            error = checkpoint.first_line(raised)
        self._ended(error)

    def save_last(self, save) -> None:
        """Calls `save`, which calls the method of that name here, until a checkpoint is complete: the run ends.

        Raises:
          PassingError: too many failed in a row.
        """
        while True:
            save()
            self.finish()
            if not self._failed:
                return
            time.sleep(LAST_PAUSE)

    def close(self) -> None:
        """Waits for what is being written; what comes of it is logged, since the run has ended anyway.

        Not agreed with other processes: after an error some of them do not come here.
        """
        try:
            self.manager.close()
        except Exception as error:  # noqa: BLE001  as above
            log.error("%s: %s", self.manager.directory, checkpoint.first_line(error))

    def _ended(self, error: str) -> None:
        """Process 0 says whether the checkpoint is complete: it is who commits it."""
        step, self._writing = self._writing, None
        folder, silent = as_path(self.manager.directory) / str(step), False
        try:
            complete = (folder / checkpoint.COMMITTED).is_file()
        except storage_errors() as raised:
            complete, error, silent = False, error or checkpoint.first_line(raised), True
        answers = exchange("how the checkpoint ended", json.dumps([complete, error]), self._wait_seconds)
        told = [json.loads(answer) for answer in answers]
        complete, errors = told[0][0], [f"process {process}: {text}" for process, (_, text) in enumerate(told) if text]
        if errors:
            for look in (self.manager.wait_until_finished, self.manager.check_for_errors, self.manager.reload):
                with contextlib.suppress(Exception):  # what else went wrong, which Orbax would raise at the next save
                    look()
        if complete:
            self._failed = 0
            if errors:
                log.warning("the checkpoint of step %d is complete, but: %s", step, errors[0])
            return self._on_saved(step)
        if jax.process_index() == 0 and not silent:  # it may be complete
            remove_folder(folder)
        self._next_try = time.monotonic() + PAUSE * 2**self._failed
        self._failed += 1
        what = f"the checkpoint of step {step} could not be written: {(errors or ['it was not committed'])[0]}"
        if self._failed >= self._max_failed:
            raise PassingError(
                f"{what}. That was number {self._failed} in a row (training.max_failed_saves); the run ends, and the "
                "same command resumes it from the newest checkpoint"
            )
        log.error("CHECKPOINT NOT SAVED, failure %d of %d in a row: %s", self._failed, self._max_failed, what)
