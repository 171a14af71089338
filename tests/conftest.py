"""Eight virtual CPU devices for every test: what holds on a mesh is tested on a mesh."""

import os
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# Programs are compiled once a session: whole runs, started again and again, then cost seconds. Other processes that a
# test starts find the same programs by the environment.
_programs = tempfile.TemporaryDirectory()
for name, value in (("compilation_cache_dir", _programs.name), ("persistent_cache_min_compile_time_secs", 0.5)):
    jax.config.update(f"jax_{name}", value)
    os.environ[f"JAX_{name.upper()}"] = str(value)


# Packages whose tests take their time to compile, and whose claims hold without optimisation too.
QUICK_COMPILATION = ("evaluation", "inference", "interop", "serving", "tests", "training")


@pytest.fixture(scope="module", autouse=True)
def _(request):
    jax.config.update("jax_disable_most_optimizations", request.path.parent.name in QUICK_COMPILATION)
