"""Sources of sound, all the way to a batch."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import make_tokenizer
from data_pipeline.wav import wav
from tests.data_pipeline.demo_data import demo_config

pytest.importorskip("soundfile")


def listening(**source):
    """The demo's data with sound; of its sources the one given, or all."""
    config = demo_config(data__batch_rows=2)
    config.model.perception.audio = ConfigDict({"tokens": 4, "shape": (16000,), "dtype": "int16"})
    if source:
        config.data.sources = {"speech": source | {"share": 1.0, "per_row": {"audio": 8, "image": 8}}}
    return config


@pytest.fixture(scope="module")
def tokenizer(cache):
    return make_tokenizer(listening(), cache)


def test_spoken_and_handwritten_digits_come_in_one_batch(tokenizer, tmp_path):
    pytest.importorskip("espeakng_loader")
    batch, _ = Mixture(listening(kind="spoken_documents"), tokenizer, "test", tmp_path).batch(1)
    media = batch["media"]
    assert media["audio"].shape == (1, 16, 16000) and media["audio"].dtype == np.int16
    assert media["image"].shape == (1, 16, 32, 32, 3)
    sounds, images = (np.any(media[name], axis=tuple(range(2, media[name].ndim))) for name in ("audio", "image"))
    assert sounds.sum() > 4 and images.sum() > 2
    assert (batch["slots"] >= 0).sum() == 4 * sounds.sum() + 8 * images.sum()


def test_only_the_learned_column_and_the_end_are_targets(tokenizer, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(np.full(800, 1000, np.int16), 8000))
    (tmp_path / "test.csv").write_text("file,question,answer\n" + "a.wav,What is said?,It is nothing.\n" * 9)
    source = {
        **{"kind": "table", "splits": {"test": f"{tmp_path}/test.csv"}, "learned": ("answer",)},
        "template": "{file:audio}Question: {question} Answer: {answer}",
    }
    batch, _ = Mixture(listening(**source), tokenizer, "test", tmp_path / "cache").batch(0)
    targets = batch["targets"][0, 0, batch["segment_ids"][0, 0] == 1]
    learned = targets[targets >= 0].tolist()
    assert tokenizer.decode(learned[:-1]).strip() == "It is nothing." and learned[-1] == tokenizer.eos
    assert np.flatnonzero(batch["media"]["audio"][0, 0])[-1] >= 1500  # 0.1 s at 16 kHz
