"""Hands a rendered job to the scheduler's own client, and says how to follow and to stop it."""

import os
import shutil
import subprocess

from kosmos_jax.errors import UserError
from launch.job import JobDescription


def submit(job: JobDescription, target, path: str) -> int:
    """Runs the target's command for a file.

    Args:
      target: a module with CLIENT, INSTALL, submit_command(job, path) and advice(job, path, output).

    Returns:
      0; for `--on local` it does not return, the job takes this process over.

    Raises:
      UserError: the client is not installed, or refuses.
    """
    if not shutil.which(target.CLIENT):
        raise UserError(f"{target.CLIENT} is not installed: {target.INSTALL}. --dry-run needs nothing of the kind")
    command = target.submit_command(job, path)
    print("running:", *command, flush=True)
    if target.__name__ == "launch.local":
        os.execvp(command[0], command)  # so that signals reach it and its status is ours
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # its messages go to the terminal
    print(done.stdout, end="")
    if done.returncode:
        raise UserError(f"{target.CLIENT} ended with status {done.returncode}; see its message above")
    for purpose, line in target.advice(job, path, done.stdout).items():
        print(f"{purpose + ':':<16}{line}")
    return 0
