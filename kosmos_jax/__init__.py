"""KOSMOS-1 for JAX: a language model that reads images.

from kosmos_jax import load

model = load("out/demo")
print(model.generate([image, "The digit is"]))
"""

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name):
    # Imported on first use: `import kosmos_jax` is then free of JAX, which the command line's help needs to be fast.
    if name == "load":
        from kosmos_jax.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
