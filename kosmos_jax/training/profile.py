"""Traces of the devices and the host: of the steps that the config names, or of the next few at SIGUSR2."""

import logging
import signal
import threading

import jax

log = logging.getLogger(__name__)
# Steps of a trace that a signal asks for.
STEPS = 5


class Profiler:
    """Writes traces to `folder`/plugins/profile, where TensorBoard and xprof look; each process writes its own.

    Args:
      folder: where TensorBoard's files are.
      steps: (first, last), the steps to trace, counted from 1; (0, 0) for none.
      place: where they will lie in the end, for messages; default: `folder`.
    """

    def __init__(self, folder, steps: tuple[int, int], place=None):
        self._folder, (self._first, self._last), self._place = folder, steps, place or folder
        self._asked, self._ends = False, None  # the last step of the trace that is being made
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR2, self._ask)

    def _ask(self, *_):
        self._asked = True

    def before(self, step: int) -> None:
        """Begins a trace when one is due; call it before the step is started."""
        if self._ends is None and (self._asked or step == self._first):
            self._ends = step + STEPS - 1 if self._asked else self._last
            log.info("tracing steps %d to %d", step, self._ends)
            self._try(jax.profiler.start_trace, self._folder)
        self._asked = False

    def after(self, step: int, results) -> None:
        """Ends the trace after its last step, whose results are waited for."""
        if step == self._ends:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._ends is not None:
            self._ends = None
            if self._try(jax.profiler.stop_trace):
                log.info("the trace is in %s: pip install xprof; xprof --logdir %s", *2 * (self._place,))

    def _try(self, function, *args) -> bool:
        """Calls a function of JAX's profiler; a trace that fails does not end the run."""
        try:
            function(*args)
            return True
        except (OSError, RuntimeError) as error:
            log.error("no trace in %s: %s", self._folder, error)
            self._ends = None
            return False
