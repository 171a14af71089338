"""What a command prints besides its results."""

import logging
import sys


def set_up_logging() -> None:
    """Messages of the project to stderr; of other packages, what is an error."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    for package in ("absl", "asyncio", "gcsfs"):  # Orbax warns of its defaults; all log what they raise too
        logging.getLogger(package).setLevel(logging.CRITICAL)
    for package in ("kosmos_jax", "data_pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    # After Orbax failed to read one array, Python says of each other one that nobody waits for it any more.
    said = sys.unraisablehook
    sys.unraisablehook = lambda what: None if "Event loop is closed" in str(what.exc_value) else said(what)
