"""Errors that are for the person at the keyboard, and the statuses with which the command ends."""

import errno

# A mistake in the command, its config or its data; and what an interrupted program gives.
EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
# EX_TEMPFAIL of sysexits.h: stopped by a signal, all saved, run the same command to resume.
EXIT_PREEMPTED = 75
# EX_SOFTWARE: training hung and was ended.
EXIT_HUNG = 70


class UserError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do.

    The command line prints the message alone, without a stack trace, and ends with `status`.
    """

    status = EXIT_USAGE


class PassingError(UserError):
    """What another start may not meet again: a disk that did not answer, a process that did not come.

    A scheduler should try once more, so the status is not that of a user's mistake.
    """

    status = 1


# What the user can put right: a wrong path, a folder of somebody else's, a disk that is read-only.
_OF_THE_USER = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def from_os(message: str, error: Exception) -> UserError:
    """The error for what a file system said: `UserError`, or `PassingError` where another start may go well.

    Args:
      message: what could not be done.
      error: an OSError, or what libraries raise for buckets.
    """
    if getattr(error, "errno", None):
        kind = UserError if error.errno in _OF_THE_USER else PassingError
        return kind(f"{message}: {error.strerror or error}")
    said, code = " ".join(str(error).split()), str(getattr(error, "code", ""))
    if isinstance(error, FileNotFoundError) or code == "404":
        return UserError(f"{message}: there is no such bucket or object, for this account ({said})")
    if said.startswith("Forbidden") or code in ("401", "403"):
        return UserError(f"{message}: access is denied ({said})")
    return PassingError(f"{message}: {said}")


def refuse_address(flag: str, path) -> None:
    """Raises UserError for a path that is an address, such as gs://bucket/folder."""
    if "://" in str(path):
        raise UserError(f"{flag} {path}: give a folder, such as a mounted bucket; addresses are not understood here")
