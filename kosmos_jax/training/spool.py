"""A workdir as a run writes it: objects of a bucket cannot be appended to, so the files that grow do so on a disk.

There they begin as copies of those in the bucket, and each that has changed is sent as one object again at every
checkpoint and at the end. On a disk the workdir itself is the place.

A bucket knows no locks. Whoever started last has the workdir: it writes its name into WORKDIR/lock, and an earlier run
that finds another's name there at its next checkpoint ends. So a run that was killed is in nobody's way.
"""

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import jax

from kosmos_jax.errors import PassingError
from kosmos_jax.paths import in_bucket, storage_errors
from kosmos_jax.programs import cache_folder
from kosmos_jax.training import ledger

log = logging.getLogger(__name__)
APPENDED, BOARD = ("metrics.jsonl", ledger.NAME), "tensorboard"


def owner() -> str:
    """This run, as it stands in the lock."""
    return json.dumps(dict(host=socket.gethostname(), process=os.getpid(), since=time.strftime("%F %T %z")))


class Spool:
    """Where a run keeps the files that grow.

    Args:
      workdir: of the run, see `paths.as_path`.

    Attributes:
      folder: the place, with their names in the workdir.
      cache: the default of `data.cache`.

    Raises:
      Exception: one of `storage_errors`, when the bucket cannot be read or written.
    """

    def __init__(self, workdir):
        self.workdir, self.folder, self.cache = workdir, workdir, workdir / "cache"
        self._sent, self._first, self._owner = {}, jax.process_index() == 0, owner()
        if not in_bucket(workdir):
            return
        self.cache = cache_folder() / "data"
        if self._first:
            (workdir / "lock").write_text(self._owner)
        found = [name for name in APPENDED if self._first and (workdir / name).exists()]
        self.folder = Path(tempfile.mkdtemp(prefix="kosmos-"))
        for name in found:
            (self.folder / name).write_bytes((workdir / name).read_bytes())

    def publish(self) -> bool:
        """Sends what has changed; False when the bucket does not take it, which is logged.

        Raises:
          PassingError: another run has taken the workdir over.
        """
        if self.folder == self.workdir:
            return True
        try:
            if self._first and (now := (self.workdir / "lock").read_text()) != self._owner:
                raise PassingError(f"--workdir {self.workdir}: a run that was started later has taken it over ({now})")
            grown = [*map(self.folder.joinpath, APPENDED), *(self.folder / BOARD).rglob("*")]
            for path in (path for path in grown if path.is_file()):
                state = path.stat().st_size, path.stat().st_mtime_ns
                if self._sent.get(path) != state:
                    (self.workdir / path.relative_to(self.folder)).write_bytes(path.read_bytes())
                    self._sent[path] = state
        except storage_errors() as error:
            log.error("%s IS NOT UP TO DATE, the next checkpoint tries again: %s", self.workdir, error)
            return False
        return True

    def close(self) -> None:
        """Sends what has changed for the last time."""
        if not self.publish():
            log.error("the last lines of metrics and ledger are in %s", self.folder)
        elif self.folder != self.workdir:
            shutil.rmtree(self.folder, ignore_errors=True)
