"""Prints what pip has to install to compile for TPUs and GPUs: kosmos_jax[plan], for the jax that is here.

Nothing where the two do not exist.
"""

import platform
from importlib.metadata import requires, version

if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
    libtpu = next(one.partition(";")[0] for one in requires("jax") if one.startswith("libtpu"))
    print(libtpu.strip(), *(f"jax-cuda13-{part}=={version('jaxlib')}" for part in ("plugin", "pjrt")))
