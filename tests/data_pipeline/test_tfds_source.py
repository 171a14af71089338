import io
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline import retries
from data_pipeline.documents import Media, RecordError, Text
from data_pipeline.readers import make_reader

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tfds = pytest.importorskip("tensorflow_datasets")


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


class TinyPets(tfds.core.GeneratorBasedBuilder):
    """Six records in two shards."""

    VERSION = tfds.core.Version("1.0.0")
    # Beside the code TFDS would look for checksums of downloads, by a package that it forgets to require.
    code_path = None

    def _info(self):
        features = tfds.features
        picture = features.Image(shape=(None, None, 3))
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": picture,
                    "label": features.ClassLabel(names=["cat", "dog"]),
                    "legs": np.int64,
                    "images": features.Sequence(picture),
                    "texts": features.Sequence(features.Text()),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            yield (
                i,
                {
                    "image": io.BytesIO(png(i)),
                    "label": i % 2,
                    "legs": 4 + i,
                    "images": [io.BytesIO(png(10 + i)), io.BytesIO(png(20 + i))],
                    "texts": ["one", "two", "", "three", ""],
                },
            )


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def data_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    builder = TinyPets(data_dir=folder, file_format=request.param)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return str(folder)


def pets(data_dir, **changes):
    config = ConfigDict(
        {
            "kind": "tfds",
            "name": "tiny_pets",
            "data_dir": data_dir,
            "splits": {"train": "train", "validation": "train[4:]"},
        }
        | changes
    )
    return lambda split: make_reader(config, split)


def test_a_template_puts_features_in_by_their_kind(data_dir):
    source = pets(data_dir, template="{image}a {label} with {legs} legs")("train")
    assert len(source) == 6
    assert [source[i].parts for i in range(6)] == [
        (Media("image", png(i)), Text(f"a {['cat', 'dog'][i % 2]} with {4 + i} legs")) for i in range(6)
    ]


def test_what_is_not_learned_is_given(data_dir):
    source = pets(data_dir, template="{image}How many legs has a {label}? {legs}", learned=("legs",))("train")
    assert source[1].parts == (Media("image", png(1)), Text("How many legs has a dog? ", False), Text("5", True))


def test_a_sub_split_reads_its_records_and_no_others(data_dir):
    source = pets(data_dir, template="{legs}")("validation")
    assert [source[i].parts for i in range(len(source))] == [(Text("8"),), (Text("9"),)]


def test_interleaved_sequences_keep_their_order(data_dir):
    source = pets(data_dir, interleaved=("images", "texts"))("train")
    images = Media("image", png(13)), Media("image", png(23))
    assert source[3].parts == (Text("one"), Text("\ntwo"), images[0], Text("three"), images[1])


def test_the_fingerprint_knows_split_and_template(data_dir):
    make = pets(data_dir, template="{legs}")
    prints = {
        make("train").fingerprint,
        make("validation").fingerprint,
        pets(data_dir, template="{label}")("train").fingerprint,
    }
    assert len(prints) == 3
    assert make("train").fingerprint in prints


def test_wrong_keys_are_named(data_dir):
    with pytest.raises(ValueError, match="feature 'lable' is none of .*; did you mean label"):
        pets(data_dir, template="{lable}")("train")
    with pytest.raises(ValueError, match="splits names no 'test'"):
        pets(data_dir, template="{label}")("test")
    with pytest.raises(ValueError, match="name media first, then texts"):
        pets(data_dir, interleaved=("texts", "images"))("train")
    with pytest.raises(ValueError, match="'label' is text, not image; write {label}"):
        pets(data_dir, template="{label:image}")("train")
    with pytest.raises(ValueError, match="'texts' is .*only images, audio, labels, texts and numbers"):
        pets(data_dir, template="{texts}")("train")


def test_a_record_that_does_not_parse_is_named(data_dir):
    source = pets(data_dir, template="{label}")("train")
    source._records = [b"\x0a\xff\xff\xff garbage"]
    with pytest.raises(RecordError, match=r"tiny_pets/1.0.0:train\[0\]: cannot be read"):
        source[0]


def test_a_record_with_an_empty_image_is_no_caption(data_dir):
    source = pets(data_dir, template="{image}a {label}")("train")
    values = source._values
    source._values = lambda example, name: [b""] if name == "image" else values(example, name)
    with pytest.raises(RecordError, match=r"train\[2\]: its image is empty"):
        source[2]


def test_of_a_mistake_in_the_code_the_record_is_innocent(data_dir, monkeypatch):
    source = pets(data_dir, template="{label}")("train")
    monkeypatch.delattr(source, "_features")
    with pytest.raises(AttributeError, match="_features"):
        source[0]


@pytest.fixture
def own_shards(data_dir, tmp_path):
    """A copy of the dataset that the test may spoil: its folder, and the two files with records."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    return str(tmp_path), sorted(tmp_path.rglob("*-of-00002"))


def rename(shards, old: str, new: str):
    for shard in shards:
        shard.with_name(old + shard.name).rename(shard.with_name(new + shard.name))


def test_a_passing_error_of_the_file_system_costs_no_record(own_shards, monkeypatch):
    folder, shards = own_shards
    source, waited = pets(folder, template="{legs}")("train"), []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            rename(shards, "away-", "")

    rename(shards, "", "away-")
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=sleep))
    assert [source[i].parts for i in range(6)] == [(Text(str(4 + i)),) for i in range(6)]
    assert waited == [0.1, 1]


def test_of_a_missing_file_the_record_is_innocent_and_read_when_it_is_back(own_shards, monkeypatch):
    folder, shards = own_shards
    source = pets(folder, template="{legs}")("train")
    monkeypatch.setattr(retries, "WAITS", (0, 0))
    rename(shards, "", "away-")
    for _ in range(2):
        with pytest.raises(OSError, match=r"record 0 cannot be read: .*No such file"):
            source[0]
    rename(shards, "away-", "")
    assert source[0].parts == (Text("4"),)


def test_a_damaged_record_costs_no_other(own_shards):
    folder, (shard, _) = own_shards
    damaged = bytearray(shard.read_bytes())
    first = 110 if "array_record" in shard.name else 12  # inside the data of the first record
    damaged[first : first + 16] = 16 * b"\xff"
    shard.write_bytes(damaged)
    source = pets(folder, template="{legs}")("train")
    for _ in range(2):
        with pytest.raises(RecordError, match=r"tiny_pets/1.0.0:train\[0\]: "):
            source[0]
    assert [source[i].parts for i in range(1, 6)] == [(Text(str(4 + i)),) for i in range(1, 6)]


def test_records_of_a_shard_that_was_cut_off_are_not_empty_documents(own_shards):
    folder, (shard, _) = own_shards
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(RecordError, match=r"train\[2\]: "):
        pets(folder, interleaved=("images", "texts"))("train")[2]


def test_a_shard_damaged_as_a_whole_is_not_read_to_its_end_for_each_record(own_shards):
    folder, (shard, _) = own_shards
    if "array_record" not in shard.name:
        pytest.skip("only array_record's errors have to be told apart by reading the shard")
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2 + 5] ^= 255  # the header of the block where the list of records begins
    shard.write_bytes(damaged)
    source = pets(folder, template="{legs}")("train")
    opened, read = source._records._gfile, []
    source._records._gfile = lambda *args: read.append(args) or opened(*args)
    for i in range(3):
        with pytest.raises(RecordError, match=rf"train\[{i}\]: .* is damaged"):
            source[i]
    assert len(read) == 2
