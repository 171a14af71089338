"""The program for fine-tuning that docs/pytorch.md shows runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kosmos_jax.interop.export import export

DOCS = Path(__file__).parents[2] / "docs/pytorch.md"


@pytest.mark.slow
def test_fine_tuning_runs(xpos_run, tmp_path):
    pytest.importorskip("peft")
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "peft" in block]
    (tmp_path / "finetune.py").write_text(program)
    export(xpos_run, "hf-remote-code", tmp_path / "out")
    words = [sys.executable, "finetune.py", "out", "2"]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "code"), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "train_loss" in run.stdout
    assert (tmp_path / "out/lora/merged/model.safetensors").exists()
