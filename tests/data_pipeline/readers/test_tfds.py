"""TensorFlow Datasets, prepared by its own writers in each of its file formats."""

import io
import os
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.documents import DataError, Document, FileError, Media, RecordError, Text
from data_pipeline.readers import make_reader
from data_pipeline.readers.tfds import _by_tfds
from tests.data_pipeline.readers.fuzz import survives

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


FORMATS = ("tfrecord", "array_record", "parquet")


@pytest.fixture(scope="module", params=FORMATS)
def data_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    builder = TinyPets(data_dir=folder, file_format=request.param)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return str(folder)


def pets(data_dir, split="train", **changes):
    config = {"kind": "tfds", "name": "tiny_pets", "data_dir": data_dir}
    config["splits"] = {"train": "train", "validation": "train[4:]"}
    return make_reader(ConfigDict(config | changes), split)


def read(reader):
    return [each for shard in reader.shards() for each in reader.read(shard)]


def test_a_template_puts_features_in_by_their_kind(data_dir):
    reader = pets(data_dir, template="{image}a {label} with {legs} legs")
    assert [document.parts for document in read(reader)] == [
        (Media("image", png(i)), Text(f"a {['cat', 'dog'][i % 2]} with {4 + i} legs")) for i in range(6)
    ]
    assert len(reader.shards()) == 2 and 0 < reader.size < 10_000
    assert [d.where for d in read(reader)] == [f"tiny_pets/1.0.0:train[{i}]" for i in range(6)]


def test_what_is_not_learned_is_given(data_dir):
    found = read(pets(data_dir, template="{image}How many legs has a {label}? {legs}", learned=("legs",)))
    assert found[1].parts == (Media("image", png(1)), Text("How many legs has a dog? ", False), Text("5", True))


@pytest.mark.parametrize(
    "split, records",
    [("train[4:]", [4, 5]), ("train[1:5]", [1, 2, 3, 4]), ("train[:34%]", [0, 1]), ("train[:1]+train[5:]", [0, 5])],
)
def test_a_sub_split_reads_its_records_and_no_others(data_dir, split, records):
    reader = pets(data_dir, template="{legs}", splits={"train": split})
    assert [document.parts for document in read(reader)] == [(Text(str(4 + i)),) for i in records]
    assert [document.where for document in read(reader)] == [
        f"tiny_pets/1.0.0:{split}[{n}]" for n in range(len(records))
    ]
    whole = pets(data_dir, template="{legs}")
    assert abs(reader.size - whole.size * len(records) / 6) <= 1


def test_interleaved_sequences_keep_their_order(data_dir):
    found = read(pets(data_dir, interleaved=("images", "texts")))
    images = Media("image", png(13)), Media("image", png(23))
    assert found[3].parts == (Text("one"), Text("\ntwo"), images[0], Text("three"), images[1])


def test_the_fingerprint_knows_the_split(data_dir):
    prints = [pets(data_dir, split, template="{legs}").fingerprint for split in ("train", "validation", "train")]
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize(
    "split, changes, message",
    [
        ("train", {"template": "{lable}"}, "feature 'lable' is none of .*; did you mean label"),
        ("test", {"template": "{label}"}, "splits names no 'test'"),
        ("train", {"interleaved": ("texts", "images")}, "name media first, then texts"),
        ("train", {"template": "{label:image}"}, "'label' is text, not image; write {label}"),
        ("train", {"template": "{texts}"}, "'texts' is .*only images, audio, labels, texts and numbers"),
        ("train", {"template": "{label}", "splits": {"train": "trian"}}, "Unknown split 'trian'"),
        ("train", {"template": "{label}", "splits": {"train": "train[9:]"}}, "incompatible with 6 examples"),
        ("train", {"template": "{label}", "name": "tiny_pet"}, "dataset tiny_pet: Dataset tiny_pet not found."),
        ("train", {}, "give either template or interleaved"),
    ],
)
def test_wrong_keys_are_named(data_dir, split, changes, message):
    with pytest.raises(DataError, match=message):
        pets(data_dir, split, **changes)


@pytest.fixture
def own_shards(data_dir, tmp_path):
    """A copy of the dataset that the test may spoil: its folder, and the two files with records."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    return str(tmp_path), sorted(tmp_path.rglob("*-of-00002"))


def test_a_missing_file_is_no_damage(own_shards):
    folder, (shard, _) = own_shards
    reader = pets(folder, template="{legs}")
    shard.unlink()
    with pytest.raises(FileNotFoundError):
        read(reader)


def test_damage_is_named_and_costs_no_more_than_its_shard(own_shards):
    folder, (shard, _) = own_shards
    damaged = bytearray(shard.read_bytes())
    first = 110 if "array_record" in shard.name else 20  # inside the data of the first record
    damaged[first : first + 16] = 16 * b"\xff"
    shard.write_bytes(damaged)
    found = read(pets(folder, template="{legs}"))
    (error,) = [each for each in found if isinstance(each, RecordError)]
    if "parquet" in shard.name:
        assert isinstance(error, FileError) and error.where == str(shard)
    else:
        assert error.where == "tiny_pets/1.0.0:train[0]" and "damaged" in error.why
        assert [each.parts for each in found[1:]] == [(Text(str(4 + i)),) for i in range(1, 6)]
    assert [each.parts for each in found[-3:]] == [(Text(str(4 + i)),) for i in range(3, 6)]


def test_a_shard_that_was_cut_off_is_named_also_at_a_record_s_end(own_shards):
    folder, (shard, _) = own_shards
    data = shard.read_bytes()
    cuts = [len(data) // 2, 0, *([len(data) // 3] if "tfrecord" in shard.name else [])]
    for cut in cuts:
        shard.write_bytes(data[:cut])
        *before, error = read(pets(folder, interleaved=("images", "texts")))[:-3]
        assert isinstance(error, FileError) and len(before) < 3, cut
        assert all(isinstance(each, Document) for each in before)


def test_records_without_a_feature_are_named(own_shards):
    tf = pytest.importorskip("tensorflow")
    folder, (shard, _) = own_shards
    if "tfrecord" not in shard.name:
        pytest.skip("the Examples are the same in all formats")
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in (b"", b"\x0a\xff\xff", tf.train.Example().SerializeToString(), _example(tf, b"")):
            writer.write(record)
    found = read(pets(folder, template="{image}{legs}"))
    whys = [each.why for each in found[:3]]
    assert whys[0] == "is empty" and "is no tf.train.Example" in whys[1] and whys[2] == "is empty"
    shard.unlink()
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for image in (b"", None, b"x"):
            writer.write(_example(tf, image))
    whys = [getattr(each, "why", "") for each in read(pets(folder, template="{image}{legs}"))[:3]]
    assert whys == ["its image is empty", "has no image", ""]


def _example(tf, image) -> bytes:
    features = {"legs": tf.train.Feature(int64_list=tf.train.Int64List(value=[4]))}
    if image is not None:
        features["image"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_other_formats_are_read_by_tfds_itself(data_dir, own_shards):
    _, (shard, _) = own_shards
    if "tfrecord" not in shard.name:
        pytest.skip("ArrayRecord has no tf.data")
    records = list(_by_tfds(str(shard), tfds.core.file_adapters.FileFormat.TFRECORD))
    assert [n for n, _ in records] == [0, 1, 2] and all(isinstance(data, bytes) for _, data in records)
    shard.write_bytes(shard.read_bytes()[:-5])
    assert isinstance(list(_by_tfds(str(shard), tfds.core.file_adapters.FileFormat.TFRECORD))[-1][1], FileError)
    with pytest.raises(DataError, match="riegeli needs a library that is not installed"):
        list(_by_tfds(str(shard), tfds.core.file_adapters.FileFormat.RIEGELI))


def test_fuzz(own_shards):
    folder, (file, _) = own_shards
    for keys in ({"template": "{image}{label}"}, {"interleaved": ("images", "texts")}):
        reader = pets(folder, **keys)
        print(file.name, survives(lambda reader=reader: reader.read(reader.shards()[0]), file))
