"""Programs are kept between processes: a second process finds what the first has compiled."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax
from kosmos_jax.programs import keep_programs
compiled = []
jax.monitoring.register_event_listener(lambda event, **_: compiled.append(event))
keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2 + 1)(1.0)
print(compiled.count("/jax/compilation_cache/cache_hits"), compiled.count("/jax/compilation_cache/cache_misses"))
"""


def run(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    kept |= {"JAX_PLATFORMS": "cpu", **environment}
    ended = subprocess.run([sys.executable, "-c", CODE], env=kept, capture_output=True, text=True, check=True)
    return tuple(map(int, ended.stdout.split()))


@pytest.mark.parametrize("variable", ["KOSMOS_CACHE", "XDG_CACHE_HOME"])
def test_a_second_process_finds_what_the_first_has_compiled(variable, tmp_path):
    hits, misses = run(**{variable: str(tmp_path)})
    assert hits == 0 and misses > 0
    assert run(**{variable: str(tmp_path)}) == (misses, 0)


def test_it_can_be_switched_off_and_a_cache_of_the_user_s_own_is_left_alone(tmp_path):
    assert run(KOSMOS_CACHE="off", XDG_CACHE_HOME=str(tmp_path)) == (0, 0)
    assert not list(tmp_path.iterdir())
    hits, misses = run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"), XDG_CACHE_HOME=str(tmp_path / "home"))
    assert misses > 0 and (tmp_path / "own").is_dir() and not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(KOSMOS_CACHE=str(tmp_path / "file")) == (0, 0)
