"""Packages that nothing but the way to and from PyTorch needs."""

import importlib

from kosmos_jax.errors import UserError


def needed(name: str, install: str = "'kosmos_jax[torch]'"):
    """The module of that name.

    Raises:
      UserError: it cannot be imported; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is needed and cannot be imported ({error}): pip install {install}") from error
