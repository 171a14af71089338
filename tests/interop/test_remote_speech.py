"""An export that hears: ids, slots, samples and scores of transformers are those of kosmos_jax; --verify says so."""

import numpy as np
import pytest
import torch
import transformers

from configs import kosmos1_speech
from data_pipeline.media import audio as host
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.cli import main
from kosmos_jax.config import apply_overrides
from kosmos_jax.inference import load
from kosmos_jax.inference.prompts import encode_prompt
from kosmos_jax.interop.export import export
from kosmos_jax.interop.verify import report, verify
from kosmos_jax.modality import modalities
from kosmos_jax.model import parameters
from tests.inference.conftest import TEXTS
from tests.interop.test_import_whisper import with_audio
from tests.model.test_parity_whisper import sounds
from tests.model.tiny import random_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a checkpoint of a tiny model that sees and hears."""
    folder, tree = tmp_path_factory.mktemp("hears"), kosmos1_speech.get_config().to_dict()
    model = with_audio()
    tokenizer = Tokenizer.train(TEXTS, vocab_size=44, modalities=modalities(model))
    tree["model"] = model.to_dict()
    tree["model"]["text"]["vocab_size"] = tokenizer.size
    config = apply_overrides(tree, ["data.tokenizer.vocab_size=44"])
    checkpoint.save_weights(folder, parameters(random_model(config.model, 2)), config, tokenizer)
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "hears"
    export(run, "hf-remote-code", out)
    return out


@pytest.fixture(scope="module")
def processor(exported):
    return transformers.AutoProcessor.from_pretrained(exported, trust_remote_code=True)


def clips():
    return [(clip / np.float32(32768), 16_000) for clip in sounds(0.4)[:3]]


@pytest.mark.parametrize("to", ["torch", "hf-remote-code"])
def test_verify_compares_sound_too(run, exported, tmp_path, to):
    if to == "torch":
        export(run, to, tmp_path / "out")
    agreements = verify(run, to, tmp_path / "out" if to == "torch" else exported, "float32")
    text, good = report(agreements, "float32")
    assert good and "several items in a row" in text, text


def test_kosmos2_of_transformers_cannot_hold_it(run, tmp_path, capsys):
    words = ["export", "--checkpoint", str(run), "--to", "hf-kosmos2", "--out", f"{tmp_path}/out"]
    assert main(words) == 2
    assert "model.perception has audio, image and it has images only" in capsys.readouterr().err


def test_ids_slots_and_samples_are_those_of_kosmos_jax(run, processor):
    tokenizer, picture = load(run).tokenizer, np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    texts = ["<audio> The digit is", "<image> plus <audio> and <audio>\nequals", "one <not a tag>"]
    batch = processor(text=texts, images=picture, audio=clips())
    one, two, three = clips()
    prompts = [[one, " The digit is"], [picture, " plus ", two, " and ", three, "\nequals"], "one <not a tag>"]
    rows = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    q = {modality.name: modality.tokens for modality in tokenizer.modalities}
    next_slot = {"image": 0, "audio": q["image"]}  # one image in the batch, then the clips
    for row, expected in enumerate(rows):
        real = batch["attention_mask"][row] == 1
        assert batch["input_ids"][row, real].tolist() == expected.tokens.tolist()
        slots = np.full(len(expected.tokens), -1)
        for kind, start in zip(expected.kinds, expected.starts, strict=True):
            slots[start : start + q[kind]] = next_slot[kind] + np.arange(q[kind])
            next_slot[kind] += q[kind]
        assert batch["image_slots"][row, real].tolist() == slots.tolist()
    samples = np.stack([item for row in rows for item in row.media.get("audio", ())])
    assert np.array_equal(batch["audio_values"].numpy(), samples)


@pytest.mark.parametrize("rate, channels", [(8_000, 1), (44_100, 2), (16_000, 8)])
def test_a_clip_of_any_rate_becomes_the_samples_of_training(processor, rate, channels):
    samples = np.random.default_rng(rate).normal(0, 0.2, (rate // 2, channels)).astype(np.float32)
    expected = host.item(host.read((samples, rate)), (16_000,))
    assert np.array_equal(processor.image_processor.clip((samples, rate)), expected)


def test_generated_tokens_are_those_of_jax_alone_and_in_a_batch(run, exported, processor):
    model = transformers.AutoModelForImageTextToText.from_pretrained(exported, trust_remote_code=True).eval()
    one, two, _ = clips()
    batch = processor(text=["<audio> is", "<audio> and <audio>"], audio=[one, two, one])
    options = dict(max_new_tokens=12, do_sample=False)
    with torch.no_grad():
        ids = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    completions = load(run).complete([[one, " is"], [two, " and ", one]], max_new_tokens=12)
    for row, completion in zip(ids, completions, strict=True):
        assert [i for i in row.tolist() if i not in (1, 2)] == completion.tokens


@pytest.mark.parametrize(
    "text, sound, message",
    [
        ("<audio>", [], "text 0 has 1 <audio>, and there are 0 clips for it"),
        ("none", clips(), "there are 3 clips, and the texts name 0 by <audio>"),
        ("<audio>", [np.arange(5)], r"clip 0 is int64\[5\]"),
        ("<audio>", [np.full(9, np.nan)], r"clip 0 is float64\[9\]"),
    ],
)
def test_sound_that_does_not_fit_is_told(processor, text, sound, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text, audio=sound)
