"""Prompts from a file: each line is answered once, whatever stops the run."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from configs import demo
from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.errors import UserError
from kosmos_jax.inference import bulk


@pytest.fixture(scope="module")
def workdir(config, params, tokenizer, tmp_path_factory):
    own, folder = demo.get_config(), tmp_path_factory.mktemp("run")
    own.model = config
    checkpoint.save_weights(folder, params, own, tokenizer)
    return folder


@pytest.fixture
def prompts(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / f"{i}.png")
    lines = [
        dict(prompt=[{"image": "0.png"}, "plus", {"image": "1.png"}, "equals"], id="sum"),
        dict(prompt="<image:0.png> is text", max_new_tokens=3),
        dict(prompt=[{"image": "gone.png"}]),
        dict(prompt="seven", n=2, temperature=1.0),
        dict(prompt="seven", temprature=1.0),
        dict(prompt=[{"video": "0.png"}]),
        dict(prompt="seven", choice=["four", "seven"]),
    ]
    lines = [json.dumps(line) for line in lines]
    lines.insert(3, "{no json")
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "prompts.jsonl"


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_an_answer_or_an_error_of_its_own(generator, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    bulk.run(lambda: generator, str(prompts), str(out), dict(max_new_tokens=4))
    found = answers(out)
    assert [set(answer) for answer in found] == [
        {"id", "text", "tokens", "finish"},
        {"text", "tokens", "finish"},
        *[{"error"}] * 2,
        {"completions"},
        *[{"error"}] * 2,
        {"text", "tokens", "finish"},
    ]
    assert found[0]["text"] == generator.generate(
        [Image.open(tmp_path / "0.png"), "plus", Image.open(tmp_path / "1.png"), "equals"], max_new_tokens=4
    )
    assert found[1]["text"] == generator.generate("<image:0.png> is text", max_new_tokens=3)
    errors = [answer["error"] for answer in found if "error" in answer]
    for error, words in zip(errors, ("gone.png: no such file", "Expecting", "'temprature'", '"video"'), strict=True):
        assert words in error
    assert found[-1]["text"] in ("four", "seven")


def test_what_was_answered_is_not_asked_again_and_half_a_line_is(generator, prompts, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    bulk.run(lambda: generator, str(prompts), str(whole), dict(max_new_tokens=4))
    data = whole.read_bytes()
    for cut in (0, 10, data.index(b"\n") + 1, len(data) - 5, len(data)):
        out.write_bytes(data[:cut])
        bulk.run(lambda: generator, str(prompts), str(out), dict(max_new_tokens=4))
        assert out.read_bytes() == data
    bulk.run(None, str(prompts), str(out), {})  # nothing to do: no model is loaded
    with pytest.raises(UserError, match="has 8 answers"):
        prompts.write_text("{}\n")
        bulk.run(None, str(prompts), str(out), {})


@pytest.mark.slow
def test_a_run_killed_at_random_moments_answers_each_line_once(workdir, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(dict(prompt=f"{i}", id=i)) + "\n" for i in range(3000)))
    out, draw = tmp_path / "out.jsonl", np.random.default_rng(1)
    command = [sys.executable, "-m", "kosmos_jax.cli", "generate", "--checkpoint", str(workdir)]
    command += ["--prompts", str(tmp_path / "in.jsonl"), "--out", str(out), "--max-new-tokens", "8"]
    kills = 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ, JAX_PLATFORMS="cpu"))
        before = out.stat().st_size if out.exists() else 0
        while process.poll() is None and (not out.exists() or out.stat().st_size == before):
            time.sleep(0.05)
        try:
            process.wait(draw.uniform(0, 1.0))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0
    print(f"{kills} kills")
    assert kills and [answer["id"] for answer in answers(out)] == list(range(3000))


def test_the_command_wants_prompts_in_one_of_two_ways(workdir, prompts, tmp_path, capsys):
    command = ["generate", "--checkpoint", str(workdir)]
    assert main(command) == 2
    assert main([*command, "--prompts", str(prompts)]) == 2
    assert main([*command, "--prompt", "x", "--prompts", str(prompts), "--out", str(tmp_path / "x")]) == 2
    assert "give --prompt TEXT, or --prompts FILE.jsonl with --out FILE.jsonl" in capsys.readouterr().err
    assert main([*command, "--prompts", str(tmp_path / "gone"), "--out", str(tmp_path / "x")]) == 2
    assert "gone" in capsys.readouterr().err
    assert main([*command, "--prompt", "seven", "--config.mesh.tensor=2", "--max-new-tokens", "2"]) == 0
    assert main([*command, "--prompt", "seven", "--n", "2", "--temperature", "1", "--max-new-tokens", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3
