"""Packages that nothing but the way to and from PyTorch needs."""

import importlib

from kosmos_jax.errors import UserError

# What the extra [torch] brings.
OF_TORCH = ("huggingface_hub", "safetensors", "tokenizers", "torch", "transformers")


def needed(name: str):
    """The module of that name.

    Raises:
      UserError: it, or what it imports itself, cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        install = "'kosmos_jax[torch]'" if missing in OF_TORCH else missing
        raise UserError(f"{missing} is needed and cannot be imported ({error}): pip install {install}") from error
