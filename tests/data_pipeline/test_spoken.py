import io
import re
import sys
import wave

import numpy as np
import pytest

from data_pipeline import builtin, espeak, spoken
from data_pipeline.documents import DataError, Media, Text
from data_pipeline.readers import SPLITS
from data_pipeline.wav import wav


@pytest.fixture(scope="module")
def clips():
    pytest.importorskip("espeakng_loader")
    return {split: spoken.spoken_digits(split) for split in SPLITS}


def test_no_voice_is_in_two_splits_and_each_says_every_digit_alike_often(clips):
    for split, (files, labels, voices) in clips.items():
        assert set(voices) == set(spoken.VOICES[split])
        said = np.unique(list(zip(voices, labels, strict=True)), axis=0, return_counts=True)[1]
        assert len(said) == 10 * len(set(voices)) and set(said) == {spoken.TAKES}
        assert len(set(files)) == len(files)
    names = [voice for voices in spoken.VOICES.values() for voice in voices]
    assert len(set(names)) == len(names)


def test_every_clip_is_a_second_at_most(clips):
    assert max(map(len, clips["train"][0])) < 2 * 22050


def test_a_second_process_says_the_same(clips):
    spoken._synthesised.cache_clear()
    assert spoken.spoken_digits("test") == clips["test"]


def features(file: bytes) -> np.ndarray:
    """Log energies of 12 moments in 25 bands, the mean taken out."""
    with wave.open(io.BytesIO(file)) as sound:
        rate, samples = sound.getframerate(), np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 2**15
    moments = np.linspace(0, len(samples) - rate // 40, 12).astype(int)[:, None] + np.arange(rate // 40)
    spectra = np.abs(np.fft.rfft(samples[moments] * np.hanning(rate // 40)))[:, :100]
    bands = np.log(spectra.reshape(12, 25, 4).sum(2) + 0.01)
    return np.append((bands - bands.mean()).ravel(), 1)


def test_a_linear_model_of_the_training_voices_understands_the_others(clips):
    x, y = np.stack([*map(features, clips["train"][0])]), np.eye(10)[list(clips["train"][1])]
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    heard = np.argmax(np.stack([*map(features, clips["test"][0])]) @ weights, axis=1)
    assert np.mean(heard == clips["test"][1]) > 0.95


def test_a_caption_is_a_clip_and_a_sentence_that_names_its_digit(clips):
    source, (files, labels, _) = spoken.SpokenDigits("test"), clips["test"]
    for i in range(0, len(source), 7):
        clip, text = source[i].parts
        assert clip == Media("audio", files[i // 3])
        assert text.text.endswith(f" {builtin.WORDS[labels[i // 3]]}.")
    assert any(text.startswith(spoken.PROMPT) for text in spoken.CAPTIONS)


def test_interleaved_documents_say_what_is_true_of_what_they_show(clips):
    label_of = dict(zip(*clips["test"][:2], strict=True)) | dict(zip(*builtin.digits("test"), strict=True))
    source, seen = spoken.SpokenDocuments("test"), set()
    for i in range(200):
        media = [part for part in source[i].parts if isinstance(part, Media)]
        texts = [part.text for part in source[i].parts if isinstance(part, Text)]
        shown = [label_of[item.data] for item in media]
        if texts[0] == " plus ":
            seen.add(tuple(item.kind for item in media))
            assert texts[1] == f" equals {builtin.WORDS[sum(shown)]}."
        else:
            (kind,) = {item.kind for item in media}
            assert len(media) >= 2
            seen.add(kind)
            styles = {s for s, name in builtin.LABELS.items() if texts == [f" {name(digit)}." for digit in shown]}
            assert styles
            seen |= styles
    assert seen == {("audio", "image"), ("image", "audio"), "audio", "image", *builtin.LABELS}


@pytest.mark.parametrize("kind", [spoken.SpokenDigits, spoken.SpokenDocuments])
def test_a_source_is_the_same_each_time_and_its_fingerprint_tells_splits_apart(clips, kind):
    assert kind("test")[3] == kind("test")[3]
    assert kind("test").fingerprint == kind("test").fingerprint
    assert len({kind(split).fingerprint for split in SPLITS}) == 3


@pytest.fixture
def recordings(tmp_path):
    """Ten recordings of three digits by two speakers, each of its own samples."""
    for n, (digit, speaker, i) in enumerate((d, s, i) for d in range(3) for s in ("theo", "lucas") for i in range(10)):
        (tmp_path / f"{digit}_{speaker}_{i}.wav").write_bytes(wav(np.full(9, n, np.int16), 8000))
    (tmp_path / "README.md").write_text("not a recording")
    return str(tmp_path)


def name_of(file: bytes, label: int, speaker: str) -> str:
    return f"{label}_{speaker}_{np.frombuffer(file[-2:], '<i2')[0] % 10}"


def names(split, *keys):
    return [name_of(*clip) for clip in zip(*spoken.spoken_digits(split, *keys), strict=True)]


def test_recordings_are_split_by_their_index(recordings):
    found = {split: names(split, recordings) for split in SPLITS}
    indices = {split: {int(name[-1]) for name in found[split]} for split in SPLITS}
    assert indices == {"test": {0, 1, 2, 3, 4}, "validation": {5, 6, 7}, "train": {8, 9}}
    assert sum(map(len, found.values())) == len(set(sum(found.values(), []))) == 60


def test_a_speaker_who_is_held_out_is_the_test_and_nothing_else(recordings):
    assert {name.split("_")[1] for name in names("test", recordings, "theo")} == {"theo"}
    assert len(names("test", recordings, "theo")) == 30
    for split, indices in (("validation", {5, 6, 7}), ("train", {0, 1, 2, 3, 4, 8, 9})):
        assert {name[2:] for name in names(split, recordings, "theo")} == {f"lucas_{i}" for i in indices}


def test_what_cannot_be_recordings_is_named(recordings, tmp_path_factory):
    with pytest.raises(DataError, match="'thea' is none of lucas, theo; did you mean theo"):
        spoken.spoken_digits("test", recordings, "thea")
    for folder in (tmp_path_factory.mktemp("empty"), "/absent"):
        with pytest.raises(DataError, match="there is no recording in it; one is named digit_speaker_index.wav"):
            spoken.spoken_digits("test", str(folder))
    with pytest.raises(DataError, match="held_out is 'theo' without recordings"):
        spoken.spoken_digits("test", held_out="theo")


def test_the_fingerprint_knows_the_recordings(recordings, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for digit in range(2):
        (other / f"{digit}_theo_0.wav").write_bytes(wav(np.full(9, digit, np.int16), 8000))
    assert spoken.SpokenDigits("test", recordings).fingerprint != spoken.SpokenDigits("test", str(other)).fingerprint


def test_a_voice_that_there_is_not_is_no_other_voice():
    pytest.importorskip("espeakng_loader")
    for voice in ("en+nobody", "en-xx+f1"):
        with pytest.raises(DataError, match=rf"eSpeak NG.*failed \(RuntimeError: there is no voice {re.escape(voice)}"):
            espeak.say([espeak.Saying("one", voice, 175, 50, 50)])


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('No module named espeakng_loader')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(DataError, match=r"pip install 'kosmos_jax\[speech\]'"):
        espeak.say([espeak.Saying("one", "en+f1", 175, 50, 50)])
