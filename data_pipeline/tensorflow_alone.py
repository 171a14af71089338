"""TensorFlow as a reader of data: it takes no accelerator, and it does not talk while it starts."""

import contextlib
import os
import sys


def tensorflow():
    """The module. The first call takes seconds; JAX owns the accelerators, so TensorFlow is shown none."""
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with _quiet_start():
            import tensorflow  # noqa: F401
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


@contextlib.contextmanager
def _quiet_start():
    """Drops what C++ code writes to standard error: TensorFlow's greetings come before it looks at its log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
