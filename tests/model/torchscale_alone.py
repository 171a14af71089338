"""torchscale without the packages that it asks for."""

import sys
from contextlib import contextmanager
from types import ModuleType

import pytest

# torchscale asks for versions of fairscale and timm that no longer install beside a current PyTorch, for three names
# that a dense decoder on one device never calls. It is installed without them, and imported with empty ones.
NEVER_CALLED = {"fairscale.nn": ("checkpoint_wrapper", "wrap"), "timm.models.layers": ("drop_path",)}


@contextmanager
def torchscale_alone():
    """torchscale.architecture.decoder, importable inside the block; without torchscale the test is skipped."""
    with pytest.MonkeyPatch.context() as patch:
        for path, names in NEVER_CALLED.items():
            parts = path.split(".")
            for depth in range(len(parts)):
                patch.setitem(sys.modules, ".".join(parts[: depth + 1]), ModuleType(parts[depth]))
            for name in names:
                setattr(sys.modules[path], name, None)
        reason = "pip install --no-deps torchscale==0.3.0"
        yield pytest.importorskip("torchscale.architecture.decoder", reason=reason)
