"""TensorBoard's files, written by the thread that trains: of a full disk it hears, and waits for no queue."""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

FLUSH_SECONDS = 30


class Board:
    """One file of events, of the steps from `first_step` on; what older files say of these steps is not shown any more.

    Raises:
      OSError: of every method, when the disk does not take it.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # The step is in the file's name too: without it, two files of the same second would be one.
        self._file, self._flushed = EventsWriter(str(folder / "events"), f".{first_step}"), time.monotonic()
        self._file.write_event(Event(step=first_step, file_version="brain.Event:2"))
        self._file.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of one step, by name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._file.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()
