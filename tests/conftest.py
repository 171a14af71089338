"""Eight virtual CPU devices for every test: what holds on a mesh is tested on a mesh."""

import os
import tempfile

import jax
import pytest

# gcsfs would ask Google's other protocol what kind of bucket one is, which storage_fake.py does not speak.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

jax.config.update("jax_num_cpu_devices", 8)

# Programs are compiled once a session: whole runs, started again and again, then cost seconds. The processes that share
# the tests, and those that a test starts, find the same programs by the environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
)


# Packages whose tests take their time to compile, and whose claims hold without optimisation too.
QUICK_COMPILATION = ("evaluation", "inference", "interop", "serving", "tests", "training")


@pytest.fixture(scope="module", autouse=True)
def _(request):
    jax.config.update("jax_disable_most_optimizations", request.path.parent.name in QUICK_COMPILATION)
