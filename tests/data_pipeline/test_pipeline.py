import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import builtin, packing, plan
from data_pipeline.documents import DataError
from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import batches
from data_pipeline.readers import KINDS
from data_pipeline.shards import Shard
from tests.data_pipeline.demo_data import ListSource, demo_config, equal

GOOD = builtin.digits("validation")[0][0]


@pytest.fixture
def captions_with(monkeypatch, tokenizer, tmp_path):
    """A mixture of one source of captions, 40 good ones among the given documents."""

    def make(*documents, **changes):
        config = demo_config(data__batch_rows=2, **changes)
        config.data.sources = {"captions": config.data.sources.captions}
        config.data.sources.captions.kind = "list"
        many = [*documents, *((GOOD, f"The digit is {builtin.WORDS[i % 10]}.") for i in range(40))]
        monkeypatch.setitem(KINDS, "list", lambda split: ListSource(many))
        return Mixture(config, tokenizer, "validation", tmp_path)

    return make


def test_batches_are_the_mixture_s_in_order(tokenizer, cache):
    mixture = Mixture(demo_config(), tokenizer, "train", cache)
    got = list(batches(mixture, 0, 4))
    assert [step for step, _, _ in got] == [0, 1, 2, 3]
    for step, arrays, stats in got:
        expected, expected_stats = mixture.batch(step)
        assert equal(arrays, expected)
        assert stats["text_fill"] == expected_stats["text_fill"]


def test_restart_at_step_n_equals_never_stopping(tokenizer, cache):
    never_stopped = list(batches(Mixture(demo_config(), tokenizer, "train", cache), 0, 5))
    restarted = list(batches(Mixture(demo_config(), tokenizer, "train", cache), 3, 5))
    assert [step for step, _, _ in restarted] == [3, 4]
    for (_, a, _), (_, b, _) in zip(never_stopped[3:], restarted, strict=True):
        assert equal(a, b)


def test_without_a_last_step_it_goes_on_from_anywhere(tokenizer, cache):
    stream = batches(Mixture(demo_config(), tokenizer, "train", cache), 10**9)
    assert [next(stream)[0] for _ in range(2)] == [10**9, 10**9 + 1]


def spoil(mixture, *items):
    """Overwrites the first bytes of some items where they are stored."""
    (plan,) = (member.plan for member in mixture.members)
    ((shard, _, _),), ledger = plan.shards(0), plan.ledger
    with open(f"{ledger.folder}/{ledger.names[0]}.media", "r+b") as file:
        for item in items:
            file.seek(int(shard.offsets[item]))
            file.write(b"junk")


def test_a_picture_that_went_bad_later_blanks_its_document_and_nothing_else(captions_with, tokenizer):
    mixture, length = captions_with(), 1 + 10 + len(tokenizer.encode("The digit is seven.")) + 1
    clean = list(batches(mixture, 0, 6))
    spoil(mixture, 7)
    spoiled, seen = list(batches(captions_with(), 0, 6)), 0
    for (_, expected, _), (_, arrays, stats) in zip(clean, spoiled, strict=True):
        if not stats["skipped"]:
            assert equal(arrays, expected)
            continue
        assert stats["skipped"] == {"captions/image": 1}
        blanked = (expected["segment_ids"] > 0).sum() - (arrays["segment_ids"] > 0).sum()
        assert blanked == length
        assert (arrays["targets"][arrays["segment_ids"] == 0] == -1).all()
        assert (arrays["tokens"][arrays["segment_ids"] == 0] == 1).all()
        seen += 1
    assert seen > 1


def test_pictures_that_went_bad_over_the_budget_stop_the_run_and_are_named(captions_with, caplog):
    mixture = captions_with(data__max_skipped=2)
    spoil(mixture, 0, 1, 2)
    with pytest.raises(
        DataError, match=r"3 records cannot be read \(captions/image: 3\), data.max_skipped is 2.*list\["
    ):
        list(batches(mixture, 0, 50))
    assert "bytes are no image format" in caplog.text or "cannot be read" in caplog.text


def test_the_same_bad_picture_counts_once_against_the_budget(captions_with):
    mixture = captions_with(data__max_skipped=1)
    spoil(mixture, 3)
    skipped = [stats["skipped"] for _, _, stats in batches(mixture, 0, 30)]
    assert sum(s.get("captions/image", 0) for s in skipped) > 1


def test_a_corrupt_record_is_skipped_and_counted_when_it_is_prepared(captions_with, caplog):
    mixture = captions_with("the disk ate it")
    assert mixture.skipped == {"captions/record": 1}
    assert "list[0]: the disk ate it" in caplog.text
    tokens = [arrays["tokens"] for _, arrays, _ in batches(mixture, 0, 3)]
    assert len(tokens) == 3
    with pytest.raises(DataError, match=r"1 records cannot be read \(captions/record: 1\), data.max_skipped is 0"):
        captions_with("the disk ate it", data__max_skipped=0)


@pytest.mark.parametrize(
    "document, kind, why",
    [
        ((b"junk", "The digit is one."), "image", "its 4 bytes are no image format"),
        ((GOOD, "half of a pair: \ud800"), "record", "text 1 is no Unicode"),
        ((GOOD, None), "record", "part 1 is neither Text nor Media"),
        ((GOOD, "seven. " * 9000), "row", "more than 16 rows of tokens for each item"),
    ],
)
def test_every_bad_record_is_skipped_counted_and_named(captions_with, caplog, document, kind, why):
    mixture = captions_with(document)
    assert mixture.skipped == {f"captions/{kind}": 1}
    assert "list[0]" in caplog.text and why in caplog.text
    with pytest.raises(DataError, match=rf"1 records cannot be read \(captions/{kind}: 1\), .* is 0.*list\[0\].*{why}"):
        captions_with(document, data__max_skipped=0)


def test_images_in_a_source_without_places_for_them_are_skipped_and_named(captions_with, caplog):
    texts = [("The digit is one.",)] * 3
    settings = dict(data__sources__captions__per_row=dict(image=0), data__max_skipped=40)
    mixture = captions_with(*texts, **settings)
    assert mixture.skipped == {"captions/row": 40}
    assert "a row cannot hold one of its items" in caplog.text and "{'image': 0}" in caplog.text
    assert not mixture.batch(0)[0]["media"]["image"].any()
    with pytest.raises(DataError, match=r"captions/row: 40\), data.max_skipped is 39.*list\[\d+\]: a row cannot hold"):
        captions_with(*texts, **settings | dict(data__max_skipped=39))


def test_what_is_left_out_of_the_rows_counts_in_the_fingerprint(captions_with, monkeypatch):
    long = (GOOD, "seven. " * 300)
    kept = captions_with(long)
    for module in packing, plan:
        monkeypatch.setattr(module, "ROWS_AN_ITEM", 1)
    left_out = captions_with(long)
    assert (kept.skipped, left_out.skipped) == ({}, {"captions/row": 1})
    assert kept.fingerprint != left_out.fingerprint


def test_an_error_in_the_data_reaches_the_reader_as_itself(captions_with, monkeypatch):
    mixture = captions_with()

    def unplugged(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Shard, "media", unplugged)
    with pytest.raises(OSError, match="^the disk is gone$"):
        next(batches(mixture, 0))


def test_tensorflow_sees_no_accelerator(tokenizer, cache):
    import tensorflow as tf

    next(batches(Mixture(demo_config(), tokenizer, "train", cache), 0))
    assert tf.config.get_visible_devices("GPU") == []
    np.testing.assert_array_equal(tf.constant([1]).numpy(), [1])


STOPS_IN_THE_MIDDLE = """
import sys, threading
from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import batches, make_tokenizer
from tests.data_pipeline.demo_data import demo_config

cache = sys.argv[1]
mixture = Mixture(demo_config(), make_tokenizer(demo_config(), cache), "train", cache)
stream, taken = batches(mixture, 0), threading.Event()

def take():
    for _ in stream:
        taken.set()

threading.Thread(target=take, daemon=True).start()
taken.wait()
sys.exit(7)
"""


def test_a_process_that_exits_while_batches_are_made_ends(cache):
    command = [sys.executable, "-c", STOPS_IN_THE_MIDDLE, str(cache)]
    assert subprocess.run(command, timeout=120, check=False).returncode == 7


def test_tensorflow_starts_before_there_is_a_thread_to_feed():
    """While it starts, what other threads write to stderr is lost: a warning of training was, every third time."""
    code = "import sys; from data_pipeline.pipeline import batches as b; b(None, 0); print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
