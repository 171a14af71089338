"""Several real processes that generate together, joined by gloo on this machine."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from kosmos_jax.cli import main
from kosmos_jax.parallel import distributed
from launch.local import free_port
from tests.inference.test_bulk import workdir  # noqa: F401


def start(words, processes, devices=4):
    """`kosmos generate` in several processes with so many devices in all."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices // processes), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "kosmos_jax.cli", "generate", *words]
    command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes), "--process-id"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [subprocess.Popen([*command, str(i)], env=environment, **pipes) for i in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_write_what_one_writes(workdir, tmp_path, capsys, processes):  # noqa: F811
    prompts = ["The digit is", "plus", "A handwritten four", "", "seven", "words, some of them twice"]
    flags = ["--checkpoint", str(workdir), "--max-new-tokens", "9", "--temperature", "0.8", "--seed", "3"]
    words = [*flags, "--json", *(word for prompt in prompts for word in ("--prompt", prompt))]
    assert main(["generate", *words]) == 0
    alone = capsys.readouterr().out
    started = start([*words, "--config.mesh.tensor=2", "--config.mesh.data=2"], processes)
    outputs = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0] * processes, outputs[0][1][-2000:]
    found = [json.loads(line)["tokens"] for line in outputs[0][0].splitlines() if line.startswith("{")]
    assert found == [json.loads(line)["tokens"] for line in alone.splitlines()]
    assert all("tokens" not in output for output, _ in outputs[1:])

    lines = "".join(json.dumps(dict(prompt=prompt)) + "\n" for prompt in prompts)
    (tmp_path / "in.jsonl").write_text(lines)
    out = tmp_path / "out.jsonl"
    words = [*flags[:4], "--prompts", str(tmp_path / "in.jsonl"), "--out", str(out), "--config.mesh.tensor=4"]
    for process in start(words, processes):
        assert process.wait(timeout=200) == 0
    assert len(out.read_text().splitlines()) == len(prompts)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_a_message(workdir, tmp_path):  # noqa: F811
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(dict(prompt=f"{i}")) + "\n" for i in range(100_000)))
    out = tmp_path / "out.jsonl"
    words = ["--checkpoint", str(workdir), "--prompts", str(tmp_path / "in.jsonl"), "--out", str(out)]
    started = start([*words, "--config.mesh.tensor=4"], 2)
    end = time.monotonic() + 200
    while not (out.exists() and out.stat().st_size) and time.monotonic() < end:
        time.sleep(0.1)
    started[1].kill()
    begin = time.monotonic()
    _, errors = started[0].communicate(timeout=3 * distributed.HEARTBEAT_SECONDS)
    print(f"the other ended after {time.monotonic() - begin:.0f} s")
    assert started[0].returncode != 0
    assert re.search("another process of the job ended|another task died", errors), errors[-2000:]
