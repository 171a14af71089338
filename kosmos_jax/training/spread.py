"""Which process is slow, when steps suddenly take longer: all wait for the slowest, so the time of a step does not say.

Each process tells the coordination service how long its host was busy in the steps of a window: waiting for data, and
in Python. What happens on the devices is not in it. Process 0 looks a window later, when all have told.
"""

import json
import logging
import socket
import statistics
from collections import deque

import jax

from kosmos_jax.parallel.distributed import client, said

log = logging.getLogger(__name__)
# A window of steps that takes so many times the usual is looked into; the usual is the median of so many windows.
SLOW, WINDOWS = 1.5, 20
# Windows whose numbers are remembered.
KEPT = 4


class Spread:
    """Compares the processes of a job; does nothing for one process alone.

    Args:
      every: steps of a window.
    """

    def __init__(self, every: int):
        self._every, self._active = every, jax.process_count() > 1
        self._usual, self._window, self._steps, self._slow = deque(maxlen=WINDOWS), 0, [], None

    def add(self, step: int, seconds: float, host: float, data: float) -> None:
        """A step that was done.

        Args:
          step: its number.
          seconds: what it took.
          host: of them, when the host was not waiting for the devices.
          data: of those, when it waited for a batch.
        """
        if not self._active:
            return
        self._steps.append((seconds, host, data))
        if len(self._steps) == self._every:
            try:
                self._end_window(step, *map(statistics.fmean, zip(*self._steps, strict=True)))
            except jax.errors.JaxRuntimeError as error:  # nothing depends on it
                log.debug("the spread over processes is not known: %s", error)
            self._steps.clear()

    def _end_window(self, step: int, seconds: float, host: float, data: float) -> None:
        self._window += 1
        told = json.dumps([self._window, host, data, socket.gethostname()])
        client().key_value_set(f"{self._key(self._window)}/{jax.process_index()}", told, allow_overwrite=True)
        if jax.process_index() > 0:
            return
        if self._slow:
            busy = {process: json.loads(text) for process, text in said(self._key(self._window - 1)).items()}
            busy = {process: rest for process, (window, *rest) in busy.items() if window == self._window - 1}
            if len(busy) == jax.process_count():
                log.warning("step %d: %s", self._slow[0], verdict(*self._slow[1:], busy))
        usual = statistics.median(self._usual) if self._usual else seconds
        self._usual.append(seconds)
        self._slow = (step, seconds, usual) if seconds > SLOW * usual else None

    def _key(self, window: int) -> str:
        return f"kosmos/busy/{window % KEPT}"


def verdict(seconds: float, usual: float, busy: dict[int, tuple[float, float, str]]) -> str:
    """Who is to blame for slow steps.

    Args:
      seconds, usual: of a step, now and before.
      busy: process -> (seconds of a step in which its host was busy, those of them waiting for data, its host's name),
        two processes at least.
    """
    slowest = max(busy, key=lambda process: busy[process][0])
    others = statistics.median(host for process, (host, _, _) in busy.items() if process != slowest)
    host, data, name = busy[slowest]
    text = f"steps take {seconds:.2f} s, {usual:.2f} before; "
    if host - others < (seconds - usual) / 2:
        return text + "no process's host is busier than the others: look at the devices and the network"
    return text + (
        f"process {slowest} on {name} is slow: its host is busy for {host:.2f} s of each, {data:.2f} of them waiting "
        f"for data; the others' for {others:.2f}"
    )
