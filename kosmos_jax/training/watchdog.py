"""Ends a process that hangs: a job that waits for ever costs as much as one that trains."""

import faulthandler
import os
import sys
import threading
import time

from kosmos_jax.errors import EXIT_HUNG

# What the start has besides its limit: the first step is compiled.
COMPILATION_SECONDS = 3600


class Watchdog:
    """Prints all stacks to stderr and ends the process with `EXIT_HUNG` when no heartbeat arrives for too long.

    Args:
      seconds: how long may pass between two calls of `alive`; 0 for ever.
      name: of the process, for the message.
      start_seconds: how long may pass before the first call; the first step's compilation has more.
    """

    def __init__(self, seconds: float, name: str, start_seconds: float):
        self._seconds, self._name = seconds, name
        self._last, self._deadline = "start", time.monotonic() + start_seconds + COMPILATION_SECONDS
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def alive(self, what: str) -> None:
        """Says that `what` has just been finished."""
        self._last, self._deadline = what, time.monotonic() + self._seconds

    def close(self) -> None:
        self._closed.set()

    def _watch(self):
        while (left := self._deadline - time.monotonic()) > 0:
            if self._closed.wait(min(left, 1.0)):  # no longer: `alive` may bring the end nearer, after compilation
                return
        print(
            f"kosmos train: {self._name} HANGS: nothing was finished since {self._last} for more than "
            f"training.hang_seconds = {self._seconds:g}. It ends with status {EXIT_HUNG}; the same command resumes "
            "from the newest checkpoint. What each thread was doing:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_HUNG)  # what hangs would hang an orderly end too
