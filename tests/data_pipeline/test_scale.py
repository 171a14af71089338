"""A source of a billion documents, by a ledger that names one shard of 65,536 captions 15,259 times."""

import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.mixture import Mixture
from data_pipeline.plan import Plan
from data_pipeline.prepare.ledger import Ledger
from data_pipeline.shards import DOCUMENTS, ShardWriter
from data_pipeline.shuffle import Order
from data_pipeline.tokenizer import Encoded, Tokenizer
from tests.data_pipeline.demo_data import demo_config, image
from tests.inference.conftest import TEXTS

BLOCKS = 10**9 // DOCUMENTS + 1
KINDS = [image(tokens=8)]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A folder with one shard of captions of 10 to 40 tokens, of which the first 10 are an image."""
    from data_pipeline.documents import Media

    folder, draw = tmp_path_factory.mktemp("shard"), np.random.default_rng(0)
    tokenizer = Tokenizer(Tokenizer.train(TEXTS, 44).model_bytes, modalities=KINDS)
    writer, item = ShardWriter(folder / "000000-000", KINDS, tokenizer.size), (Media("image", b""),)
    tag, end = tokenizer.tag_ids["<image>"], tokenizer.tag_ids["</image>"]
    for n in draw.integers(1, 30, DOCUMENTS).tolist():
        tokens = np.array([tag] * 9 + [end] + [10] * n, np.int32)
        learned = np.arange(len(tokens) + 1) >= 10
        cuts = np.array([10, len(tokens)], np.int32)
        writer.add(Encoded(tokens, learned, item, np.array([1], np.int32), cuts), [b"x"], "d")
    return folder, tokenizer, writer.close()


def ledger_of(folder, tokenizer, held, blocks) -> Ledger:
    each = {key: [held[key]] * blocks for key in ("documents", "tokens", "items")}
    return Ledger(str(folder), f"{blocks} blocks", tokenizer.fingerprint, [["image", 8]], ["000000-000"] * blocks,
                  **each, skipped={}, examples={})  # fmt: skip


def test_the_first_batch_of_a_billion_documents_comes_in_a_second_and_any_other_in_milliseconds(
    shard, tmp_path, monkeypatch
):
    folder, tokenizer, held = shard
    one = Plan(ledger_of(folder, tokenizer, held, 1), 256, 4, (64,), ("image",), tmp_path)
    # The plan of every block, as `kosmos data prepare` leaves it: 10 ms each, in parallel, once.
    monkeypatch.setattr(Plan, "summaries", np.repeat(one.summaries, BLOCKS, axis=0))
    monkeypatch.setattr(Mixture, "_item", lambda self, gathered, m: np.zeros((32, 32, 3), np.uint8))
    ledger = ledger_of(folder, tokenizer, held, BLOCKS)
    monkeypatch.setattr("data_pipeline.mixture.prepared", lambda *_: ledger)
    config = demo_config(data__batch_rows=64)
    config.data.sources = dict(captions=dict(kind="digits", share=1.0, per_row=dict(image=16), augment={}))
    begin = time.perf_counter()
    mixture = Mixture(config, tokenizer, "train", tmp_path)
    mixture.batch(0)
    first = time.perf_counter() - begin
    assert sum(ledger.documents) > 10**9
    # Blocks of the window are planned as they come: 16 of them for the first batch of a run that has no plans.
    begin = time.perf_counter()
    again, _ = mixture.batch(0)
    expected = mixture.batch(10**9)[0]["tokens"]
    resumed = Mixture(config, tokenizer, "train", tmp_path)
    np.testing.assert_array_equal(resumed.batch(10**9)[0]["tokens"], expected)
    print(f"first batch {first:.2f} s; again, two at step 10^9 and a restart {time.perf_counter() - begin:.2f} s")
    assert again["tokens"].shape == (1, 64, 256)


def test_an_order_of_a_billion_documents_takes_little_memory_and_no_time_to_begin_anywhere():
    order = Order(np.random.default_rng(0).integers(2600, 2760, BLOCKS), (0, 1))
    for first in (0, 10**8, 10**15):
        blocks, rows = order(np.arange(first, first + 1000))
        assert len(set(zip(blocks.tolist(), rows.tolist(), strict=True))) == 1000
        assert len(set(blocks.tolist())) <= 2 * Order.WINDOW


def test_a_path_of_the_ledger_is_where_it_was_read_and_not_where_it_was_written(shard, tmp_path):
    folder, tokenizer, held = shard
    ledger = ledger_of(folder, tokenizer, held, 3)
    assert [path.path for path in ledger.shards(2, Path("unused"))] == [folder / "000000-000"]
