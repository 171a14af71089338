"""The programs that docs/pytorch.md shows run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.interop.export import export
from tests.inference.conftest import TEXTS

DOCS = Path(__file__).parents[2] / "docs/pytorch.md"


@pytest.mark.slow
def test_reading_fine_tuning_and_importing_run(xpos_run, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    reading, fine_tuning = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "both.py").write_text(reading + fine_tuning)
    export(xpos_run, "hf-remote-code", tmp_path / "out/demo-hf")
    (tmp_path / "out/demo").mkdir()
    for name in ("digit_one", "digit_two"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"out/demo/{name}.png")
    words = [sys.executable, "both.py", "out/demo-hf", "2"]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "code"), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "train_loss" in run.stdout
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"kosmos (import .*out/lora/merged.*)", DOCS.read_text())
    assert main(line.split()) == 0
    before, after = (checkpoint.restore(path) for path in (xpos_run, "out/finetuned"))
    assert after.tokenizer.encode(" ".join(TEXTS)) == before.tokenizer.encode(" ".join(TEXTS))
    tuned = {
        name.split("/")[-2] for name in before.params if not np.array_equal(before.params[name], after.params[name])
    }
    assert tuned == {"query", "value", "fc1", "fc2"}
