import io
import os
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.documents import FileError, Media, RecordError, Text
from data_pipeline.readers import fingerprint, make_reader

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tfds = pytest.importorskip("tensorflow_datasets")


SPLITS = {"train": "train", "validation": "train[4:]"}


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


@pytest.fixture(scope="module", params=["tfrecord", "array_record", "parquet"])
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
            "splits": SPLITS,
        }
        | changes
    )
    return lambda split: make_reader(config, split)


def read(reader):
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_a_template_puts_features_in_by_their_kind(data_dir):
    found = read(pets(data_dir, template="{image}a {label} with {legs} legs")("train"))
    assert [document.parts for document in found] == [
        (Media("image", png(i)), Text(f"a {['cat', 'dog'][i % 2]} with {4 + i} legs")) for i in range(6)
    ]
    assert [document.where for document in found] == [f"tiny_pets/1.0.0:train[{i}]" for i in range(6)]


def test_what_is_not_learned_is_given(data_dir):
    found = read(pets(data_dir, template="{image}How many legs has a {label}? {legs}", learned=("legs",))("train"))
    assert found[1].parts == (Media("image", png(1)), Text("How many legs has a dog? ", False), Text("5", True))


def test_a_sub_split_reads_its_records_and_no_others(data_dir):
    found = read(pets(data_dir, template="{legs}")("validation"))
    assert [document.parts for document in found] == [(Text("8"),), (Text("9"),)]


def test_interleaved_sequences_keep_their_order(data_dir):
    document = read(pets(data_dir, interleaved=("images", "texts"))("train"))[3]
    images = Media("image", png(13)), Media("image", png(23))
    assert document.parts == (Text("one"), Text("\ntwo"), images[0], Text("three"), images[1])


def test_the_fingerprint_knows_split_and_template(data_dir):
    def of(**changes):
        config = ConfigDict(dict(kind="tfds", name="tiny_pets", data_dir=data_dir, splits=SPLITS) | changes)
        return [fingerprint(config, split, make_reader(config, split)) for split in SPLITS]

    legs, labels = of(template="{legs}"), of(template="{label}")
    assert len({*legs, *labels}) == 4
    assert legs == of(template="{legs}")


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


@pytest.fixture
def own_shards(data_dir, tmp_path):
    """A copy of the dataset that the test may spoil: its folder, and the two files with records."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    return str(tmp_path), sorted(tmp_path.rglob("*-of-00002*"))


def test_a_damaged_record_is_named_and_costs_no_other(own_shards):
    folder, (shard, _) = own_shards
    if "tfrecord" not in shard.name:
        pytest.skip("only TFRecord has a checksum for each record")
    damaged = bytearray(shard.read_bytes())
    damaged[30] ^= 255  # inside the data of the first record
    shard.write_bytes(damaged)
    first, *others = read(pets(folder, template="{legs}")("train"))
    assert str(first) == "tiny_pets/1.0.0:train[0]: its checksum is wrong"
    assert [document.parts for document in others] == [(Text(str(4 + i)),) for i in range(1, 6)]


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_shard_that_was_cut_off_is_named_and_the_other_is_read(own_shards, part):
    folder, (shard, _) = own_shards
    shard.write_bytes(shard.read_bytes()[: int(shard.stat().st_size * part)])
    found = read(pets(folder, template="{legs}")("train"))
    errors = [each for each in found if isinstance(each, RecordError)]
    assert errors and all(isinstance(error, FileError) and str(shard) in str(error) for error in errors)
    assert [each.parts for each in found[-3:]] == [(Text(str(4 + i)),) for i in range(3, 6)]


def test_of_a_missing_file_no_record_is_guilty(own_shards):
    folder, shards = own_shards
    reader = pets(folder, template="{legs}")("train")
    shards[0].unlink()
    with pytest.raises(OSError, match="No such file|not found|NOT_FOUND|Failed to open"):
        read(reader)
