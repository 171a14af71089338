"""Reading from disks that are somewhere in a network."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)
# Seconds between attempts when the file system gives an error.
WAITS = (0.1, 1.0, 10.0)
T = TypeVar("T")
Errors = tuple[type[Exception], ...]


def retried(read: Callable[[], T], what: str, errors: Errors = (OSError,), final: Errors = ()) -> T:
    """What `read` returns; after an error of the file system it is tried again.

    Args:
      read: may raise anything else too, which is not tried again.
      what: for messages, such as "record 17".
      errors: those that may pass.
      final: those among them that do not: raised at once, as they are.

    Raises:
      OSError: it still fails after `WAITS`.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except final:
            raise
        except errors as error:
            if wait is None:
                raise OSError(f"{what} cannot be read: {error}") from error
            log.warning("%s: %s; once more in %g s", what, error, wait)
            time.sleep(wait)
