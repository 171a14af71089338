"""A server of several real processes, joined by gloo on this machine."""

import os
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import openai
import pytest

from kosmos_jax.inference.options import Options
from kosmos_jax.inference.prompts import encode_prompt
from kosmos_jax.parallel import distributed
from kosmos_jax.serving import lockstep
from kosmos_jax.serving.lockstep import Order
from launch.local import free_port
from tests.evaluation.conftest import config, params, tokenizer, workdir  # noqa: F401
from tests.serving.conftest import as_url, until_answered


def test_orders_arrive_as_they_were_sent(tokenizer, pictures):  # noqa: F811
    prompt = encode_prompt([pictures[0], "plus", pictures[1], "equals"], tokenizer)
    options = Options(
        seed=-(2**63), temperature=0.1, bias={7: -1.5}, stop=["a", "b"], stop_ids=[3], allowed=[7, 9], n=3
    )
    sent = [
        Order(1, "generate", (prompt, options)),
        Order(2, "score", (prompt, [np.array([5, 6], np.int32), np.array([7], np.int32)], 3)),
        Order(1, "cancel"),
    ]
    found = lockstep.unpacked(lockstep.packed(sent))
    assert [order[:2] for order in found] == [order[:2] for order in sent]
    assert found[0].arguments[1] == options and found[1].arguments[2] == 3 and found[2].arguments == ()
    np.testing.assert_equal(found[0].arguments[0], prompt)
    np.testing.assert_equal(found[1].arguments[1], sent[1].arguments[1])
    assert lockstep.unpacked(lockstep.packed([])) == []


def begun(workdir, processes: int, *flags):  # noqa: F811
    """Processes of one server, with four devices in all, and its URL."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(4 // processes), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    port, words = free_port(), ["--slots", "256x4,256x1x4", *flags]
    command = [sys.executable, "-m", "kosmos_jax.cli", "serve", "--checkpoint", str(workdir), "--name", "tiny"]
    command += ["--port", str(port), *words]
    if processes > 1:
        command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes), "--process-id"]
    own = [[str(i)] * (processes > 1) for i in range(processes)]
    started = [subprocess.Popen([*command, *i], env=environment, stderr=subprocess.PIPE, text=True) for i in own]
    return started, f"http://127.0.0.1:{port}"


def served(workdir, processes: int, *flags):  # noqa: F811
    """The processes of `begun`, once they are ready, and a client."""
    started, url = begun(workdir, processes, *flags)
    if until_answered(f"{url}/ready", lambda: all(process.poll() is None for process in started)):
        return started, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for process in started:
        process.kill()
    pytest.fail("\n".join(process.stderr.read()[-2000:] for process in started))


def answers(client, picture) -> list:
    """What a server says to requests of several kinds, a stream that is left early among them."""
    asked = dict(model="tiny", max_tokens=150, temperature=0, extra_body=dict(ignore_eos=True))
    with client.completions.create(prompt="left", stream=True, **asked) as stream:
        next(iter(stream))
    texts = client.completions.create(prompt=["The digit is", "plus", "seven"], **asked).choices
    own = dict(model="tiny", max_tokens=12)
    texts += client.completions.create(prompt="one two", n=3, seed=5, **own).choices
    beams = dict(use_beam_search=True, ignore_eos=True)
    texts += client.completions.create(prompt="one", n=2, extra_body=beams, temperature=0, **own).choices
    scored = client.completions.create(prompt="one two three", echo=True, logprobs=1, max_tokens=0, model="tiny")
    parts = [dict(type="image_url", image_url=dict(url=as_url(picture))), dict(type="text", text="The digit is")]
    message = [dict(role="user", content=parts)]
    texts += client.chat.completions.create(messages=message, temperature=0, **own).choices
    with pytest.raises(openai.BadRequestError, match="more than any slot"):
        client.completions.create(prompt="long", model="tiny", max_tokens=1000)
    found = [getattr(choice, "text", None) or choice.message.content for choice in texts]
    return found, scored.choices[0].logprobs.token_logprobs[1:]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_answer_as_one(workdir, pictures, processes):  # noqa: F811
    started, client = served(workdir, 1)
    texts, logprobs = answers(client, pictures[0])
    started[0].terminate()
    assert started[0].wait(60) == 0
    started, client = served(workdir, processes, "--config.mesh.tensor=2", "--config.mesh.data=2")
    found, values = answers(client, pictures[0])
    assert found == texts
    np.testing.assert_allclose(values, logprobs, atol=1e-5)
    for process in started:  # as a scheduler does it: all at once
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in started] == [0] * processes


@pytest.mark.slow
def test_all_end_where_they_are_stopped_before_they_are_ready(workdir):  # noqa: F811
    started, url = begun(workdir, 2, "--config.mesh.tensor=4", "--slots", "256x4,512x4,256x1x4")
    assert until_answered(f"{url}/health")
    assert httpx.get(f"{url}/ready").status_code == 503  # programs are compiled now
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        process.communicate(timeout=60)
    # Process 0 has nothing to finish; it may also see first that the other one is gone.
    assert started[0].returncode in (0, 1) and started[1].returncode == -signal.SIGTERM


@pytest.mark.slow
def test_several_processes_without_a_mesh_are_refused(workdir):  # noqa: F811
    started, _ = begun(workdir, 2)
    assert "add --config.mesh.tensor=N" in started[0].communicate(timeout=100)[1]
    assert all(process.wait(100) for process in started)


@pytest.mark.slow
def test_a_killed_process_ends_the_server_with_a_message(workdir):  # noqa: F811
    started, client = served(workdir, 2, "--config.mesh.tensor=4")
    asked = dict(prompt="x", model="tiny", max_tokens=200, extra_body=dict(ignore_eos=True))
    stream = client.completions.create(**asked, stream=True)
    next(iter(stream))
    started[1].kill()
    with pytest.raises(openai.OpenAIError):
        for _ in range(200):
            client.completions.create(**asked)
    _, errors = started[0].communicate(timeout=3 * distributed.HEARTBEAT_SECONDS)
    assert started[0].returncode != 0
    assert re.search("another process of the job ended|another task died", errors), errors[-2000:]
