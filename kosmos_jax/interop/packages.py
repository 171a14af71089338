"""Packages that nothing but the way to and from PyTorch needs."""

import importlib

from kosmos_jax.errors import UserError

# Where `pip install NAME` is not what we say.
INSTALL = dict.fromkeys(("safetensors", "tokenizers", "torch", "transformers"), "'kosmos_jax[torch]'")


def needed(name: str):
    """The module of that name.

    Raises:
      UserError: it, or what it imports itself, cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        install = INSTALL.get(missing, missing)
        raise UserError(f"{missing} is needed and cannot be imported ({error}): pip install {install}") from error
