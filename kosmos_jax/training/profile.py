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
    """

    def __init__(self, folder, steps: tuple[int, int]):
        self._folder, (self._first, self._last) = folder, steps
        self._asked = self._running = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR2, self._ask)

    def _ask(self, *_):
        self._asked = True

    def before(self, step: int) -> None:
        """Begins a trace when one is due; to be called before the step is started."""
        if self._asked and not self._running:
            self._first, self._last = step, step + STEPS - 1
        self._asked = False
        if step == self._first:
            log.info("tracing steps %d to %d", step, self._last)
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results) -> None:
        """Ends the trace after its last step, whose results are waited for."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("the trace is in %s; to look at it: pip install xprof; xprof --logdir %s", *2 * (self._folder,))
