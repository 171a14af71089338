"""The programs that docs/pytorch.md shows run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from kosmos_jax.interop.export import export

DOCS = Path(__file__).parents[2] / "docs/pytorch.md"


@pytest.mark.slow
def test_reading_and_fine_tuning_run(xpos_run, tmp_path):
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
    assert (tmp_path / "out/lora/merged/model.safetensors").exists()
