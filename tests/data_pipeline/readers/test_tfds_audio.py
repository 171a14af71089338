import io
import os
import re
import wave
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipeline.documents import Media, RecordError, Text
from data_pipeline.readers import make_reader, tfds_features
from data_pipeline.wav import wav

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tfds = pytest.importorskip("tensorflow_datasets")

FILE = wav(np.arange(5, dtype=np.int16), 16000)


class TinySounds(tfds.core.GeneratorBasedBuilder):
    """Three records; the last one's samples are of 24 bits."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        audio, files = tfds.features.Audio, tfds.features.Audio(file_format="wav", lazy_decode=True)
        features = {
            "audio": audio(file_format="wav", sample_rate=8000),  # as spoken_digit has it
            "stereo": audio(shape=(None, 2), dtype=np.float32),
            "bytes": audio(dtype=np.uint8, sample_rate=8000),
            "file": files,
            "files": tfds.features.Sequence(files),
            "sounds": tfds.features.Sequence(audio(sample_rate=8000)),
            "texts": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            samples = np.array([i, -(2**15), 2**15 - 1 + i // 2])
            record = {"audio": samples, "sounds": [samples, samples], "bytes": np.zeros(3, np.uint8), "label": i}
            record |= {"file": io.BytesIO(FILE), "files": [io.BytesIO(FILE), io.BytesIO(FILE)]}
            record |= {"stereo": np.array([[0, 1], [-1, 0.5]], np.float32), "texts": ["a", "", "b", ""]}
            yield i, record


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    TinySounds(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def sounds(data_dir, **keys):
    config = {"kind": "tfds", "name": "tiny_sounds", "data_dir": data_dir, "splits": {"train": "train"}} | keys
    reader = make_reader(ConfigDict(config), "train")
    return [each for shard in reader.shards() for each in reader.read(shard)]


def read(file: bytes) -> tuple[int, int, np.ndarray]:
    """Channels, hertz, samples."""
    with wave.open(io.BytesIO(file)) as sound:
        assert sound.getsampwidth() == 2
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        return sound.getnchannels(), sound.getframerate(), samples


def test_samples_become_a_file_that_says_their_rate(data_dir):
    audio, text = sounds(data_dir, template="{audio}The digit is {label}.")[1].parts
    assert (audio.kind, text) == ("audio", Text("The digit is 1."))
    channels, rate, samples = read(audio.data)
    assert (channels, rate, samples.tolist()) == (1, 8000, [1, -(2**15), 2**15 - 1])


def test_a_rate_that_the_dataset_does_not_state_is_the_sources(data_dir):
    (audio,) = sounds(data_dir, template="{stereo}", sample_rate=44100)[0].parts
    channels, rate, samples = read(audio.data)
    assert (channels, rate, samples.tolist()) == (2, 44100, [0, 32767, -32767, 16384])


def test_stored_files_are_put_in_as_they_are(data_dir):
    assert sounds(data_dir, template="{file}")[0].parts == (Media("audio", FILE),)
    interleaved = sounds(data_dir, interleaved=("files", "texts"))[0].parts
    assert interleaved == (Text("a"), Media("audio", FILE), Text("b"), Media("audio", FILE))


def test_samples_beyond_16_bits_cost_their_record_only(data_dir):
    _, good, bad = sounds(data_dir, template="{audio}")[:3]
    assert isinstance(bad, RecordError) and len(good.parts) == 1
    assert re.search(r"train\[2\]: .*go from -32768 to 32768; those of 16 bits", str(bad))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"template": "{stereo}"}, "'stereo' does not state its sample rate; give the source sample_rate"),
        ({"template": "{bytes}"}, "'bytes' is Audio of uint8"),
        ({"template": "{audio:image}"}, "'audio' is audio, not image; write {audio}"),
        ({"interleaved": ("sounds", "texts")}, "'sounds' is Audio in a sequence; only with lazy_decode"),
    ],
)
def test_audio_that_cannot_become_files_is_named(data_dir, keys, message):
    with pytest.raises(ValueError, match=message):
        sounds(data_dir, **keys)


@pytest.mark.parametrize("encoding, packed", [("bytes", bytes), ("zlib", zlib.compress)])
def test_samples_stored_as_bytes_are_read(encoding, packed):
    feature = tfds.features.Audio(dtype=np.int16, sample_rate=8000, encoding=encoding)
    stored = SimpleNamespace(bytes_list=SimpleNamespace(value=[packed(np.array([3, -4], np.int16).tobytes())]))
    (file,) = tfds_features.values(feature, stored, 0)
    assert read(file)[2].tolist() == [3, -4]


def test_floats_that_are_no_samples_are_refused():
    assert read(wav(np.array([1.5, -0.5]), 8000))[2].tolist() == [32767, -16384]  # an overshoot is clipped
    for samples in ([], [np.nan], [300.0]):
        with pytest.raises(ValueError, match="no samples|floats go from -1 to 1"):
            wav(np.array(samples), 8000)
