"""Compiled programs are cached from one process to the next: the second start of the same thing compiles nothing."""

import hashlib
import os
import platform
from pathlib import Path

VARIABLE = "KOSMOS_CACHE"
# What takes less to compile is not cached, in seconds.
AT_LEAST = 0.2
OFF = ("off", "0", "false")


def cache_folder() -> Path:
    """The folder `KOSMOS_CACHE`, by default (and with "off") kosmos_jax in the user's cache folder."""
    place = os.environ.get(VARIABLE, "")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "kosmos_jax" if place.lower() in ("", *OFF) else Path(place)


def keep_programs() -> None:
    """Lets JAX keep programs in the folder `KOSMOS_CACHE`, by default the user's cache folder; "off" caches none.

    A cache that the user gave JAX is left as it is.
    """
    import jax

    if os.environ.get(VARIABLE, "").lower() in OFF or jax.config.jax_compilation_cache_dir:
        return
    folder = cache_folder() / "programs" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written: nothing is cached
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", AT_LEAST)


def _processor() -> str:
    """A name for this kind of processor: a home may be shared with machines that know other instructions."""
    flags = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()}-{hashlib.sha256((flags + platform.processor()).encode()).hexdigest()[:8]}"
