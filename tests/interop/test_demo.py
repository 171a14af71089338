"""The demo's model, exported, reads digits in PyTorch as it does in JAX."""

import io
from pathlib import Path

import jax
import pytest
import transformers
from PIL import Image

import kosmos_jax
from configs import demo
from data_pipeline import builtin
from kosmos_jax.config import apply_overrides
from kosmos_jax.interop.export import export
from kosmos_jax.training.trainer import train

DIGITS = 64


@pytest.mark.slow
def test_the_exported_demo_answers_as_in_jax(tmp_path):
    """A sixth of the demo's training, most of it captions: enough for answers that depend on the image."""
    jax.config.update("jax_disable_most_optimizations", False)  # that many steps are worth compiling well
    config = demo.get_config()
    del config.data.sources.interleaved
    config.data.sources.captions.share = 0.875
    overrides = ["training.steps=250", "training.eval_every=0", "evaluation.tasks=()"]
    assert train(apply_overrides(config, overrides), tmp_path / "run") == 0
    images = [Image.open(io.BytesIO(image)) for image in builtin.digits("test")[0][:DIGITS]]
    generator = kosmos_jax.load(tmp_path / "run")
    ours = generator.generate([[image, builtin.CAPTION_PROMPT] for image in images], max_new_tokens=8)

    export(tmp_path / "run", "hf-remote-code", tmp_path / "out")
    load = dict(pretrained_model_name_or_path=Path(tmp_path / "out"), trust_remote_code=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(**load)
    processor = transformers.AutoProcessor.from_pretrained(**load)
    inputs = processor(text=[f"<image>{builtin.CAPTION_PROMPT}"] * DIGITS, images=images)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    theirs = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])

    print(f"{len(set(ours))} different answers, such as {sorted(set(ours))[:3]}")
    assert theirs == ours
    assert len(set(ours)) > 5
