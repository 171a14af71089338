"""WORKDIR/ledger.jsonl: what the time of a run went into, over all its starts.

Each line says what the time since the line before it was spent on:

    {"at": 1763900000.0, "kind": "attempt", "processes": 2}              a start begins; `at` in seconds since 1970
    {"at": 1763900021.4, "kind": "start", "seconds": 21.4, "step": 40}    imports, data, restoring; resumes from step 40
    {"at": 1763900033.0, "kind": "compile", "seconds": 11.6}
    {"at": 1763900033.9, "kind": "step", "seconds": 0.8, "wait": 0.1, "step": 41, "tokens": 4012, "loss": 2.1}
    {"at": 1763900035.1, "kind": "checkpoint", "seconds": 1.2}            while no step was made; or "evaluation"
    {"at": 1763900036.0, "kind": "saved", "seconds": 0.0, "step": 41}    the checkpoint of step 41 is complete
    {"at": 1763900036.2, "kind": "end", "seconds": 0.2, "ended": "done"}  absent after a kill

`wait` is the part that went into waiting for data. Within an attempt times are those of a clock that nobody sets.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kosmos_jax.errors import UserError
from kosmos_jax.paths import as_path
from kosmos_jax.training.lines import Lines, read_lines

NAME = "ledger.jsonl"
KINDS = ("start", "compile", "data wait", "step", "checkpoint", "evaluation", "end", "lost work")


class Ledger:
    """Appends to the ledger of `workdir`; without `active` it does nothing.

    Args:
      workdir: a folder that exists.
      began: when the process began, in seconds since 1970.
      processes: how many the job has.
      active: whether this is the process that writes.
    """

    def __init__(self, workdir, began: float, processes: int, active: bool):
        self._clock = began - (time.time() - time.monotonic())  # when it began, by the monotonic clock
        self._began = self._last = began
        self._lines = Lines(Path(workdir) / NAME) if active else None
        self._append(at=began, kind="attempt", processes=processes)

    def spent(self, kind: str, wait: float = 0.0, **facts) -> None:
        """The time since the last call went into `kind`, but for `wait` seconds of waiting for data."""
        now = self._began + time.monotonic() - self._clock
        seconds, self._last = max(now - self._last, 0.0), now
        self._append(at=now, kind=kind, seconds=seconds, wait=min(wait, seconds), **facts)

    def saved(self, step: int) -> None:
        """Says that the checkpoint of `step` is complete."""
        self._append(at=self._last, kind="saved", seconds=0.0, wait=0.0, step=step)
        self.publish()

    def publish(self) -> None:
        if self._lines:
            self._lines.publish()

    def close(self) -> None:
        if self._lines:
            self._lines.close()

    def _append(self, **line) -> None:
        if self._lines:
            self._lines.append(line)


def last(workdir, kind: str) -> int:
    """The highest step in the lines of a kind, "step" or "saved"; 0 where there is none."""
    return max((line["step"] for line in read_lines(as_path(workdir) / NAME) if line["kind"] == kind), default=0)


@dataclass
class Attempt:
    """One start of a run.

    Attributes:
      began, until: of the attempt and of its last line, in seconds since 1970.
      first_step: updates that had been done when it began; None when it ended before that was known.
      steps: its lines of kind "step".
      seconds: kind -> seconds; "lost work" is in it, steps that a later attempt did again.
      lost: how many of its steps a later attempt did again.
      ended: "done", "preempted", "error", or "killed".
    """

    began: float
    until: float
    first_step: int | None = None
    steps: list[dict] = field(default_factory=list)
    seconds: Counter = field(default_factory=Counter)
    lost: int = 0
    ended: str = "killed"


def read(workdir) -> list[Attempt]:
    """The attempts of a run, in order.

    Raises:
      UserError: the workdir has no ledger, or nothing is in it.
    """
    path = as_path(workdir, "--workdir") / NAME
    if not path.is_file():
        raise UserError(f"--workdir {workdir}: no {NAME} in it; `kosmos train` writes it")
    attempts = []
    for line in read_lines(path):
        if line["kind"] == "attempt":
            attempts.append(Attempt(line["at"], line["at"]))
        if line["kind"] == "attempt" or not attempts:  # the first line may be damaged
            continue
        attempt = attempts[-1]
        attempt.until, attempt.ended = line["at"], line.get("ended", "killed")
        if line["kind"] == "step":
            attempt.steps.append(line)
        elif line["kind"] != "saved":
            attempt.seconds.update({line["kind"]: line["seconds"] - line["wait"], "data wait": line["wait"]})
        if line["kind"] == "start":
            attempt.first_step = line["step"]
    if not attempts:
        raise UserError(f"{path} holds no attempt")
    kept = float("inf")
    for attempt in reversed(attempts):
        for step in attempt.steps:
            if step["step"] > kept:
                attempt.lost += 1
                attempt.seconds["lost work"] += step["seconds"]
            else:
                attempt.seconds.update({"step": step["seconds"] - step["wait"], "data wait": step["wait"]})
        if attempt.first_step is not None:
            kept = min(kept, attempt.first_step)
    return attempts
