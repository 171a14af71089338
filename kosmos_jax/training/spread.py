"""Which process is slow, when steps suddenly take longer: all wait for the slowest, so the time of a step does not say.

Each process tells the coordination service how long its host was busy in a step: waiting for data, and in Python. What
happens on the devices is not in it.
"""

import json
import logging
import socket
import statistics
from collections import deque

import jax

log = logging.getLogger(__name__)
# A window of steps that takes so many times the usual is looked into; the usual is the median of so many windows.
SLOW, WINDOWS = 1.5, 20
KEY = "kosmos/busy"


class Spread:
    """Compares the processes of a job; does nothing for one process alone.

    Args:
      every: steps of a window.
    """

    def __init__(self, every: int):
        self._every, self._active = every, jax.process_count() > 1
        self._usual, self._steps, self._host, self._data = deque(maxlen=WINDOWS), [], [], []

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
        for kept, value in ((self._steps, seconds), (self._host, host), (self._data, data)):
            kept.append(value)
        if len(self._steps) < self._every:
            return
        mean, host, data = (statistics.fmean(kept) for kept in (self._steps, self._host, self._data))
        for kept in (self._steps, self._host, self._data):
            kept.clear()
        self._tell(host, data)
        usual = statistics.median(self._usual) if self._usual else mean
        self._usual.append(mean)
        if jax.process_index() == 0 and mean > SLOW * usual:
            log.warning("step %d: %s", step, verdict(mean, usual, self._told()))

    def _tell(self, host: float, data: float) -> None:
        from jax._src.distributed import global_state

        told = json.dumps([host, data, socket.gethostname()])
        global_state.client.key_value_set(f"{KEY}/{jax.process_index()}", told, allow_overwrite=True)

    def _told(self) -> dict[int, list]:
        from jax._src.distributed import global_state

        return {int(key.rpartition("/")[2]): json.loads(v) for key, v in global_state.client.key_value_dir_get(KEY)}


def verdict(seconds: float, usual: float, busy: dict[int, tuple[float, float, str]]) -> str:
    """Who is to blame for slow steps.

    Args:
      seconds, usual: of a step, now and before.
      busy: process -> (seconds of a step in which its host was busy, those of them waiting for data, its host's name).
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
