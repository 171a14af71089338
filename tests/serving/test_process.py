"""The command itself, as a process."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from launch.local import free_port
from tests.evaluation.conftest import config, params, tokenizer, workdir  # noqa: F401

pytestmark = pytest.mark.slow


def test_sigterm_lets_a_stream_end_and_refuses_what_comes_after(workdir):  # noqa: F811
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "kosmos_jax.cli", "serve", "--checkpoint", str(workdir), "--port", str(port)]
    command += ["--slots", "1024x1", "--name", "tiny", "--api-key", "secret"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=url, timeout=60, headers=dict(authorization="Bearer secret")) as client:
            end = time.monotonic() + 120
            while time.monotonic() < end and process.poll() is None:
                try:
                    if client.get("/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
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
    finally:
        process.kill()
