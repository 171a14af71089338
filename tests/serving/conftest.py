"""A real server with a tiny model of random weights, on a port of this machine.

Servers belong to a module, not to the session: how programs are compiled is set for each module.
"""

import base64
import io
import threading
import time
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from kosmos_jax.inference.generator import Generator
from kosmos_jax.serving.app import Server
from kosmos_jax.serving.media import Limits
from kosmos_jax.serving.metrics import Metrics
from kosmos_jax.serving.worker import Worker
from launch.local import free_port
from tests.inference.conftest import config, params, tokenizer  # noqa: F401

POOLS = {(128, 1): 3, (128, 4): 1}


def until_answered(url, alive=lambda: True, seconds=200) -> bool:
    """Waits for status 200; False if it does not come in time, or whoever should answer is no longer alive."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and alive():
        try:
            if httpx.get(url).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    return False


def started(generator, most=64, key="", template="base", limits=None):
    """A running server: its url, worker and a function that ends it."""
    metrics = Metrics()
    worker = Worker(generator, most, metrics.first_token)
    metrics.watch(worker)
    server = Server(worker, metrics, "tiny", template, limits or Limits(), key)
    port = free_port()
    http = uvicorn.Server(uvicorn.Config(server.app, port=port, log_level="warning"))
    worker.start()
    thread = threading.Thread(target=http.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    until_answered(f"{url}/ready")

    def stop():
        http.should_exit = True
        thread.join(10)
        worker.stop(5)

    return SimpleNamespace(url=url, port=port, worker=worker, stop=stop, generator=generator)


@pytest.fixture(scope="session")
def make_generator(config, params, tokenizer):  # noqa: F811
    return lambda: Generator(config, params, tokenizer, pools=POOLS, chunk=16, steps=4, pieces=2)


@pytest.fixture(scope="module")
def spare(make_generator):
    """A generator for servers that a test starts for itself, one after another: what is compiled stays."""
    return make_generator()


@pytest.fixture(scope="module")
def server(make_generator):
    running = started(make_generator())
    yield running
    running.stop()


@pytest.fixture(scope="module")
def generator(make_generator):
    """The same model without a server: what the answers have to be."""
    return make_generator()


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def pictures():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(2)]


def as_url(picture) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
