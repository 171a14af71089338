"""Several processes on one machine: `--on local`, and the GPUs of a host in a pod.

    python -m launch.local --here 2 -- kosmos train --config configs/demo.py --workdir out/two

Each process gets `--coordinator HOST:PORT --processes N --process-id I` after its command, and its lines come out with
its number in front. SIGTERM, Ctrl-C and the end of the terminal (SIGHUP) stop all of them; a second SIGTERM or Ctrl-C
kills. SIGUSR1 and SIGUSR2 are passed on, and the processes continue.
"""

import argparse
import ctypes
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from launch.job import JobDescription

SUFFIX, CLIENT, INSTALL = ".sh", "bash", "it comes with the system"
STOPPED = 75  # of kosmos train: saved, run again to resume
# What is left to the other processes once one has failed, to say what they saw.
GRACE_SECONDS = 30.0
STOPPING = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
# What `kosmos train` answers without stopping: its stacks, a trace of its profiler.
ASKING = signal.SIGUSR1, signal.SIGUSR2
WRITING = threading.Lock()
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def render(job: JobDescription) -> str:
    """A shell script that runs the complete job on this machine."""
    job.require(
        job.hosts * job.slices == 1 or job.kind == "cpu",
        "topology",
        'this machine is one host: write one, such as "h100:1x8", or "cpu:1x4" to try four processes',
    )
    words = [sys.executable, "-m", "kosmos_jax.cli", *job.command[1:]]
    if job.kind != "tpu":  # one process drives all chips of a TPU host
        gpus = ["--one-gpu-each"] if job.kind == "gpu" else []
        words = [sys.executable, "-m", "launch.local", f"--here={job.processes}", *gpus, "--", *words]
    return "\n".join(["#!/bin/bash", *job.exports, f"exec {shlex.join(words)}", ""])


def submit_command(job: JobDescription, path: str) -> list[str]:
    return ["bash", path]


def advice(job: JobDescription, path: str, output: str) -> dict[str, str]:
    """Nothing to follow: it has ended by then."""
    return {"again": f"bash {path}"}


def run(
    command: list[str], here: int, total=0, first=0, coordinator="", one_gpu_each=False, grace=GRACE_SECONDS
) -> int:
    """Starts processes `first` .. `first + here - 1` of `total` (default: `here`), and waits for them.

    When one fails, the others have `grace` seconds left before they are killed.

    Args:
      command: the words of one process.
      here: processes to start on this machine.
      total: processes of the job.
      first: number of the first one here.
      coordinator: host:port where they meet.
      one_gpu_each: whether each process sees one GPU.
      grace: seconds between SIGTERM and SIGKILL.

    Returns:
      The status of the first to fail (128 + its number if a signal ended it); otherwise 75 if a process ended with it,
      otherwise 0.
    """
    coordinator = coordinator or f"127.0.0.1:{free_port()}"
    processes, printers, arrived = [], [], []
    previous = _forward_signals(processes, arrived)
    try:
        for index in range(here):
            flags = [f"--coordinator={coordinator}", f"--processes={total or here}", f"--process-id={first + index}"]
            # As under Slurm: all GPUs are visible, and JAX takes the one of the local rank.
            environment = os.environ | ({"JAX_LOCAL_DEVICE_IDS": str(index)} if one_gpu_each else {})
            # A session of its own: Ctrl-C at the terminal reaches it through us alone, once.
            process = subprocess.Popen(
                [*command, *flags],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_before_start,
            )
            processes.append(process)
            for number in arrived:  # before this one was there
                process.send_signal(number)
        # Only now: no process may be made by `preexec_fn` while there are threads.
        for index, process in enumerate(processes):
            printers.append(threading.Thread(target=_print_lines, args=(process.stdout, first + index), daemon=True))
            printers[-1].start()
        return _wait(processes, first, grace)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _kill(processes)
        for printer in printers:
            printer.join(timeout=5)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _before_start():
    """Runs in each new process, before its command."""
    if sys.platform == "linux":  # however we end, SIGKILL included, it is asked to stop
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in ASKING:  # or a question would end it before it can answer
        signal.signal(number, signal.SIG_IGN)


def _print_lines(stream, rank: int):
    for line in stream:
        _write(f"[{rank}] {line.decode(errors='replace').rstrip()}")


def _write(line: str):
    # Where nobody reads any more, as after SIGHUP, the processes still have to get rid of their lines: they are saving.
    rest = f"{line}\n".encode()
    with suppress(OSError), WRITING:
        while rest:  # a signal, or an output that does not wait, cuts a write short
            select.select([], [1], [])
            with suppress(BlockingIOError):
                rest = rest[os.write(1, rest) :]


def _forward_signals(processes, arrived) -> dict:
    """Passes signals on, and notes those that stop; returns the handlers that were there before, by signal."""

    by_hand = []  # a terminal that closes may send SIGHUP more than once, and beside SIGTERM

    def stop(number, frame):
        if number != signal.SIGHUP:
            by_hand.append(number)
        if len(by_hand) > 1:
            _kill(processes)
        elif not arrived:
            arrived.append(signal.SIGTERM if number == signal.SIGHUP else number)
            for process in processes:
                process.send_signal(arrived[0])

    def ask(number, frame):
        for process in processes:
            process.send_signal(number)

    handlers = dict.fromkeys(STOPPING, stop) | dict.fromkeys(ASKING, ask)
    # What was ignored is still ignored: `nohup`, and Ctrl-C for what a script runs in the background.
    return {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) != signal.SIG_IGN
    }


def _kill(processes):
    """Ends processes that are still there, and all that they started: each has a group of its own."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait(processes, first: int, grace: float) -> int:
    failure, deadline = None, float("inf")
    while time.monotonic() < deadline:
        statuses = [process.poll() for process in processes]
        failed = [rank for rank, status in enumerate(statuses) if status not in (None, 0, STOPPED)]
        if failed and failure is None:
            # A shell's way to say that a signal ended it.
            status = statuses[failed[0]]
            failure = status if status > 0 else 128 - status
            deadline = time.monotonic() + grace
            _say(f"process {first + failed[0]} ended with status {failure}")
        if None not in statuses:
            return max(statuses) if failure is None else failure
        time.sleep(0.05)
    _say(f"{statuses.count(None)} still there after {grace:g} s: killed")
    return failure


def _say(text):
    _write(f"[launch.local] {text}")


def main(argv: list[str] | None = None) -> int:
    """The command line; see the top of the file."""
    argv = sys.argv[1:] if argv is None else argv
    if "--" not in argv:
        argv = [*argv, "--"]
    cut = argv.index("--")
    parser = argparse.ArgumentParser(prog="python -m launch.local", usage="%(prog)s [options] -- COMMAND ...")
    add = parser.add_argument
    add("--here", type=int, required=True, metavar="N", help="processes to start on this machine")
    add("--total", type=int, default=0, metavar="N", help="processes of the complete job; default: those here")
    add("--first", type=int, default=0, metavar="I", help="number of the first process here; default: 0")
    add("--coordinator", default="", metavar="HOST:PORT", help="of process 0; default: this machine, a free port")
    add("--one-gpu-each", action="store_true", help="process I uses the I-th GPU of this machine alone")
    add("--grace", type=float, default=GRACE_SECONDS, metavar="SECONDS", help="for the others once one has failed")
    args = parser.parse_args(argv[:cut])
    if not argv[cut + 1 :]:
        parser.error("no command; write it after --")
    if not shutil.which(argv[cut + 1]):
        parser.error(f"there is no command {argv[cut + 1]}")
    return run(argv[cut + 1 :], **vars(args))


if __name__ == "__main__":
    sys.exit(main())
