import collections

import jax
import numpy as np
import pytest

from data_pipeline.layout import row_counts, spread
from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import batches
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.demo_data import demo_config, equal


@pytest.fixture(scope="module")
def demo(tokenizer, cache):
    return Mixture(demo_config(), tokenizer, "train", cache)


def test_shapes_and_dtypes_are_the_contract_s(demo):
    arrays, _ = demo.batch(3)
    n = 2 * 0 + 2 * 15 + 4 * 20
    assert {name: (value.shape, str(value.dtype)) for name, value in arrays.items() if name != "media"} == {
        **{name: ((1, 8, 256), "int32") for name in ("tokens", "targets", "segment_ids", "positions", "slots")},
        "row_source": ((1, 8), "int32"),
    }
    assert {kind: (x.shape, str(x.dtype)) for kind, x in arrays["media"].items()} == {
        "image": ((1, n, 32, 32, 3), "uint8")
    }


def test_every_slot_points_at_a_picture_and_every_picture_is_pointed_at(demo):
    arrays, _ = demo.batch(0)
    slots = arrays["slots"][arrays["slots"] >= 0]
    assert len(np.unique(slots)) == len(slots)
    shown = np.flatnonzero(arrays["media"]["image"][0].any(axis=(1, 2, 3)))
    assert sorted(set(slots // 8)) == shown.tolist()
    assert (arrays["tokens"][arrays["slots"] >= 0] == demo.tokenizer.tag_ids["<image>"]).all()


def test_the_batch_of_a_step_depends_on_config_seed_and_step_alone(demo, tokenizer, cache):
    demo.batch(5)
    again = Mixture(demo_config(), tokenizer, "train", cache)
    assert equal(demo.batch(4)[0], again.batch(4)[0])
    other_seed = Mixture(demo_config(seed=1), tokenizer, "train", cache)
    assert not np.array_equal(demo.batch(4)[0]["tokens"], other_seed.batch(4)[0]["tokens"])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_any_number_of_processes_sees_the_same_global_batch(tokenizer, cache, processes, microbatches):
    config = demo_config(training__microbatches=microbatches, data__batch_rows=8 * microbatches)
    mixture = Mixture(config, tokenizer, "train", cache, data_shards=4)
    complete, _ = mixture.batch(11)
    parts = []
    for p in range(processes):
        rows, images = mixture.rows // processes, mixture.items["image"] // processes
        own = {"image": slice(p * images, (p + 1) * images)}
        parts.append(mixture.batch(11, slice(p * rows, (p + 1) * rows), own)[0])
    assert equal(complete, jax.tree.map(lambda *each: np.concatenate(each, axis=1), *parts))


def test_an_epoch_is_every_row_of_the_plan_once(tokenizer, cache):
    config = demo_config(data__batch_rows=4)
    mixture = Mixture(config, tokenizer, "validation", cache)
    text = mixture.names.index("text")
    rows = int(mixture.members[text].plan.bundles.sum())
    seen = [collections.Counter(), collections.Counter()]
    for step in range(2 * rows):
        tokens = mixture.batch(step)[0]["tokens"][0, mixture.layout.row_source(0)[0] == text]
        seen[step // rows][tokens.tobytes()] += 1
    assert seen[0] == seen[1]
    assert set(seen[0].values()) == {1}
    assert len(seen[0]) == rows


def test_epochs_have_different_orders(tokenizer, cache):
    mixture = Mixture(demo_config(data__batch_rows=4), tokenizer, "validation", cache)
    text = mixture.names.index("text")
    rows = int(mixture.members[text].plan.bundles.sum())
    mine = mixture.layout.row_source(0)[0] == text
    first = [mixture.batch(step)[0]["tokens"][0, mine].tobytes() for step in range(2 * rows)]
    assert first[:rows] != first[rows:]


def test_every_step_holds_the_exact_share_of_each_source(demo):
    for step in range(5):
        source = demo.batch(step)[0]["row_source"]
        assert np.bincount(source.ravel()).tolist() == [2, 4, 2]


def test_the_paper_s_shares_by_largest_remainder():
    assert row_counts({"text": 0.5, "captions": 0.5, "interleaved": 0.2}, 12) == [5, 5, 2]
    assert row_counts({"text": 0.5, "captions": 0.5, "interleaved": 0.2}, 256) == [107, 107, 42]
    assert row_counts({"a": 1, "b": 1, "c": 1}, 4) == [2, 1, 1]
    assert row_counts({"a": 1, "b": 0}, 4) == [4, 0]


def test_a_share_that_gets_no_row_is_an_error_with_the_batch_that_would_do():
    with pytest.raises(ValueError, match="data.sources.b.share is 0.1, less than one of the 2 rows.*batch_rows to 12"):
        row_counts({"a": 0.9, "b": 0.1}, 2, microbatches=2)
    assert row_counts({"a": 0.9, "b": 0.1}, 6) == [5, 1]


def test_rows_that_do_not_divide_are_an_error_with_the_nearest_that_do(tokenizer, cache):
    with pytest.raises(ValueError, match="data.batch_rows is 10, .*microbatches=2 and 2 data shards; try 8"):
        Mixture(demo_config(data__batch_rows=10, training__microbatches=2), tokenizer, "train", cache, data_shards=2)


def test_sources_are_spread_evenly_over_the_rows():
    assert spread([2, 4]).tolist() == [1, 0, 1, 1, 0, 1]
    assert spread([1, 0, 1]).tolist() == [0, 2]


def test_the_image_buffer_divides_over_the_shards(tokenizer, cache):
    assert Mixture(demo_config(), tokenizer, "train", cache, data_shards=8).items == {"image": 112}
    only_text = demo_config(data__sources__captions__share=0.0, data__sources__interleaved__share=0.0)
    assert Mixture(only_text, tokenizer, "train", cache, data_shards=4).items == {"image": 4}


def test_the_demo_s_text_positions_are_97_percent_full(demo):
    assert demo.plan_fill() >= 0.97
    measured = [demo.batch(step)[1] for step in range(20)]
    assert np.mean([stats["text_fill"] for stats in measured]) == pytest.approx(demo.plan_fill(), abs=0.01)
    assert np.mean([stats["item_fill"]["image"] for stats in measured]) == pytest.approx(
        demo.item_fill()["image"], abs=0.02
    )
    assert demo.item_fill()["image"] >= 0.9


def test_augmentation_differs_between_epochs_and_only_in_training(tokenizer, cache):
    mixture = Mixture(demo_config(data__batch_rows=4), tokenizer, "validation", cache)
    pictures = {p.tobytes() for step in range(60) for p in mixture.batch(step)[0]["media"]["image"][0] if p.any()}
    assert len(pictures) <= 200  # the validation split has 200 digits: each is always squashed alike
    training = Mixture(demo_config(data__batch_rows=4), tokenizer, "train", cache)
    seen = [p.tobytes() for step in range(60) for p in training.batch(step)[0]["media"]["image"][0] if p.any()]
    assert len(set(seen)) == len(seen)


def test_without_isolation_a_row_is_one_segment(tokenizer, cache):
    arrays, _ = Mixture(demo_config(data__isolate_documents=False), tokenizer, "train", cache).batch(0)
    assert set(np.unique(arrays["segment_ids"])) <= {0, 1}
    assert (arrays["positions"] == np.arange(256)).all()


def test_a_model_of_text_alone_has_rows_of_text_alone(tokenizer, tmp_path):
    config = demo_config(data__batch_rows=4)
    config.model.perception, config.data.sources = {}, {"text": config.data.sources.text}
    config.data.sources.text.per_row = {}
    mixture = Mixture(config, Tokenizer(tokenizer.model_bytes), "validation", tmp_path)
    arrays, stats = mixture.batch(0)
    assert arrays["media"] == mixture.items == stats["item_fill"] == {}
    assert (arrays["slots"] == -1).all() and stats["text_fill"] > 0.5
    ((_, from_tf_data, _),) = batches(mixture, 0, 1)
    assert equal(from_tf_data, arrays)
