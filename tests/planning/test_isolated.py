"""Plans are made in a process of their own, which may crash, and does not outlive who asked for it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kosmos_jax.config import load_config
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.topology import parse
from kosmos_jax.planning import isolated

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    return load_config(ROOT / "tests/training/tiny_run.py")


def crash(*args):
    os.abort()


def refuse(*args):
    raise UserError("refused in words")


def fail(*args):
    raise KeyError("a bug")


def endless(*args):
    Path(args[0]).write_text(str(os.getpid()))
    time.sleep(600)


def test_a_compiler_that_crashes_is_an_error_in_words(config, monkeypatch):
    monkeypatch.setattr(isolated, "_plan", crash)
    with pytest.raises(UserError, match="crashed"):
        isolated.isolated_plan(config, parse("v5e:2x2"))


@pytest.mark.parametrize("make, error, message", [(refuse, UserError, "refused"), (fail, RuntimeError, "a bug")])
def test_what_is_raised_in_the_other_process_is_raised_here(make, error, message, config, monkeypatch):
    monkeypatch.setattr(isolated, "_plan", make)
    with pytest.raises(error, match=message):
        isolated.isolated_plan(config, parse("v5e:2x2"))


def test_the_compiler_ends_with_who_asked_for_it(tmp_path):
    """SIGKILL leaves nobody to end it: it has to see for itself."""
    place = tmp_path / "pid"
    code = f"""
from tests.planning.test_isolated import endless
from kosmos_jax.planning import isolated
isolated._plan, isolated.to_json = endless, lambda config: {str(place)!r}
from kosmos_jax.parallel.topology import parse
if __name__ == "__main__":
    isolated.isolated_plan(None, parse("v5e:2x2"))
"""
    script = tmp_path / "asks.py"
    script.write_text(code)
    asks = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(lambda: place.exists() and place.read_text())
    compiles = int(place.read_text())
    asks.kill()
    asks.wait()
    wait_for(lambda: not Path(f"/proc/{compiles}").exists())


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
