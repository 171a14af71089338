"""The command itself, as a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from launch.local import free_port
from tests.evaluation.conftest import config, params, tokenizer, workdir  # noqa: F401
from tests.serving.conftest import until_answered
from tests.serving.test_limits import BODIES_OF_A_TEST, hammered

pytestmark = pytest.mark.slow


@pytest.fixture
def started(workdir):  # noqa: F811
    """A function that starts the command with more flags, and returns the process and its URL once it is ready."""
    processes = []

    def start(*flags):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "kosmos_jax.cli", "serve", "--checkpoint", str(workdir), "--port", str(port)]
        process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
        processes.append(process)
        if until_answered(f"{url}/ready", lambda: process.poll() is None):
            return process, url
        process.kill()
        pytest.fail(process.stderr.read())

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_sigterm_lets_a_stream_end_and_refuses_what_comes_after(started):
    process, url = started("--slots", "1024x1", "--name", "tiny", "--api-key", "secret")
    with httpx.Client(base_url=url, timeout=60, headers=dict(authorization="Bearer secret")) as client:
        asked = dict(prompt="secret words", max_tokens=900, ignore_eos=True, stream=True)
        asked |= dict(stream_options=dict(include_usage=True))
        with client.stream("POST", "/v1/completions", json=asked) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.05)
            late = client.post("/v1/completions", json=dict(prompt="x"))
            ready = client.get("/ready").status_code
            *_, usage, last = [line for line in lines if line]
    assert (late.status_code, late.headers["retry-after"], ready) == (503, "10", 503)
    assert last == "data: [DONE]" and json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 900
    assert process.wait(10) == 0
    said = process.stderr.read()
    assert "/v1/completions 200" in said and "secret" not in said and "Traceback" not in said


def test_thousands_of_bodies_that_make_no_sense_leave_nothing_behind(started):
    import psutil

    # A process of its own: what hypothesis remembers of ten thousand examples is not the server's.
    process, url = started("--slots", "256x2,256x1x4", "--name", "tiny")
    threading.Thread(target=process.stderr.read, daemon=True).start()  # or its log fills the pipe
    server = psutil.Process(process.pid)
    hammered(url, 1000)
    before = server.memory_info().rss, server.num_fds()
    print(hammered(url, BODIES_OF_A_TEST or 2000))
    after = server.memory_info().rss, server.num_fds()
    print(f"resident memory {before[0] / 2**20:.0f} -> {after[0] / 2**20:.0f} MiB, files {before[1]} -> {after[1]}")
    assert after[0] - before[0] < 30 * 2**20 and after[1] - before[1] < 10
    taken = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("kosmos_slots_taken")]
    assert len(taken) == 2 and all(line.endswith(" 0.0") for line in taken)
