"""The checkpoints of a run while it trains: one is written at a time, and one that fails is tried again."""

import contextlib
import logging
import time
from pathlib import Path

import jax

from kosmos_jax import checkpoint
from kosmos_jax.errors import PassingError, UserError
from kosmos_jax.parallel.distributed import exchange

log = logging.getLogger(__name__)
# Seconds before a checkpoint that failed is tried again, doubled each time; and before the last one of a run is.
PAUSE, LAST_PAUSE = 30, 10


class Saver:
    """Starts checkpoints and sees them through.

    Args:
      manager: see `checkpoint.make_manager`.
      max_failed: checkpoints in a row that may fail before the run ends.
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

        Raises:
          PassingError: too many failed in a row.
        """
        self.finish()
        self._writing, self.retry = int(state.step), False
        try:
            checkpoint.save(self.manager, state, config, tokenizer, data_state)
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # noqa: BLE001  Orbax raises many kinds; any of them means: not saved.
            self._ended(error)

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

    def save_last(self, save) -> None:
        """Calls `save`, which calls the method above, until a checkpoint is complete: no further step comes.

        Raises:
          PassingError: too many failed in a row.
        """
        save()
        self.finish()
        while self._failed:
            time.sleep(LAST_PAUSE)
            save()
            self.finish()

    def close(self) -> None:
        """Waits for what is being written; what comes of it is logged, since the run has ended anyway."""
        try:
            self.finish()
            self.manager.close()
        except Exception as error:  # noqa: BLE001  as above
            log.error("%s: %s", self.manager.directory, checkpoint.first_line(error))

    def finish(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
          PassingError: too many failed in a row.
        """
        if self._writing is None:
            return
        error = None
        try:
            self.manager.wait_until_finished()
            committed = Path(self.manager.directory) / str(self._writing) / checkpoint.COMMITTED
            if not committed.is_file():
                error = FileNotFoundError(f"{committed} was not written")
        except Exception as raised:  # noqa: BLE001  as above
            error = raised
        self._ended(error)

    def _ended(self, error: Exception | None) -> None:
        step, self._writing = self._writing, None
        said = exchange("how the checkpoint ended", checkpoint.first_line(error) if error else "", self._wait_seconds)
        failures = [f"process {process}: {text}" for process, text in enumerate(said) if text]
        if not failures:
            self._failed = 0
            self._on_saved(step)
            return
        for look in (self.manager.wait_until_finished, self.manager.check_for_errors):
            with contextlib.suppress(Exception):  # what else went wrong, which Orbax would raise at the next save
                look()
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                checkpoint.remove_unfinished(Path(self.manager.directory))
        self._next_try = time.monotonic() + PAUSE * 2**self._failed
        self._failed += 1
        what = f"the checkpoint of step {step} could not be written: {failures[0]}"
        if self._failed > self._max_failed:
            raise PassingError(
                f"{what}. That was number {self._failed} in a row (training.max_failed_saves); the run ends, and the "
                "same command resumes it from the newest checkpoint"
            )
        log.error("CHECKPOINT NOT SAVED, failure %d of %d in a row: %s", self._failed, self._max_failed, what)
