"""What commands print: the project's messages, and of other packages nothing that is not the user's."""

import subprocess
import sys

CODE = """
import logging
from kosmos_jax.logs import set_up_logging
set_up_logging()
for package, level in (("absl", "error"), ("asyncio", "error"), ("other", "info"), ("kosmos_jax.training", "info")):
    getattr(logging.getLogger(package), level)("said by %s", package)
class Noisy:
    def __init__(self, text):
        self.text = text
    def __del__(self):
        raise RuntimeError(self.text)
for text in ("Event loop is closed", "a fault"):
    Noisy(text)
"""


def test_other_packages_are_silent_and_faults_are_not():
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stderr
    assert "said by kosmos_jax.training" in said and "RuntimeError: a fault" in said
    assert said.count("said by") == 1 and "Event loop" not in said
