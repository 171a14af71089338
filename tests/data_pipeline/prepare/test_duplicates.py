"""Near-duplicates: the later of two documents that share a band goes, whatever is compared at a time."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Document
from data_pipeline.prepare.duplicates import duplicates, signature
from data_pipeline.shards import BANDS, ShardWriter, StoredBands
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.demo_data import parts
from tests.inference.conftest import TEXTS

ROOT = Path(__file__).parents[3]


def sign(*given, where="a"):
    return signature(Document(parts(*given), where))


def words(seed: int, n: int) -> list[str]:
    return [f"w{random.Random(f'{seed}/{i}').randrange(10_000)}" for i in range(n)]


def by_dictionary(shards) -> list[bool]:
    """Which documents have a band that an earlier one had."""
    seen, found = set(), []
    for shard in shards:
        for document in shard.T.tolist():
            bands = set(enumerate(document))
            found.append(bool(bands & seen))
            seen |= bands
    return found


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_it_finds_what_a_dictionary_finds(sizes, different, at_a_time, seed):
    draw = np.random.default_rng(seed)
    # Few values, so that many are equal; some as large as hashes are.
    values = draw.integers(0, 2**64 - 1, 40 * different, np.uint64)
    shards = [draw.choice(values, (BANDS, size)) for size in sizes]
    assert duplicates(shards, sum(sizes), at_a_time).tolist() == by_dictionary(shards)


def test_of_documents_that_are_nearly_the_same_the_first_alone_stays():
    texts = [words(n, 200) for n in range(20)]
    changed = [[*text[:150], "other", *text[151:]] for text in texts]  # a Jaccard similarity of 191 / 201
    unlike = [[*text[:60], *words(100 + n, 140)] for n, text in enumerate(texts)]  # and of 56 / 336
    shards = [np.stack([sign(" ".join(text)) for text in group], axis=1) for group in (texts, changed, unlike)]
    found = duplicates(shards, 60)
    assert not found[:20].any() and found[20:40].all() and not found[40:].any()


def test_similar_documents_are_found_as_often_as_the_docstring_says():
    def share_found(changes):
        pairs = []
        for n in range(200):
            text = words(n, 504)  # 500 fives
            other = [f"x{i}" if i % (504 // changes) == 0 else word for i, word in enumerate(text)]
            fives = [{tuple(t[i : i + 5]) for i in range(500)} for t in (text, other)]
            similarity = len(fives[0] & fives[1]) / len(fives[0] | fives[1])
            pairs.append((sign(" ".join(text)) == sign(" ".join(other))).any())
        return similarity, np.mean(pairs)

    for changes in (12, 36):
        similarity, share = share_found(changes)
        assert share == pytest.approx(1 - (1 - similarity**8) ** 14, abs=0.12), similarity


def test_short_texts_are_duplicates_only_if_all_is_equal():
    assert (sign("A red  house") == sign("a red house")).all() and not (sign("a red house") == sign("a red")).any()
    assert (sign(b"1", "a house") == sign(b"1", "a house")).all()
    assert not (sign(b"1", "a house") == sign(b"2", "a house")).any()
    assert not (sign() == sign(b"")).any()
    # With five words the text decides, and pictures do not.
    assert (sign(b"1", "a red house on a hill") == sign(b"2", "a red house on a hill")).all()


def test_a_signature_is_the_same_in_every_process_and_in_every_version():
    text = "The harbour was quiet when the fishing boats came home."
    code = (
        "import sys; from data_pipeline.documents import Document, Text\n"
        "from data_pipeline.prepare.duplicates import signature\n"
        "print(signature(Document((Text(sys.argv[1]),), 'a')).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(run.stdout) == sign(text).tolist()
    # What is prepared on another machine, or with another version of rensa, is compared with what is prepared here.
    assert sign(text)[:2].tolist() == GOLDEN
    assert sign("short")[:2].tolist() == SHORT


GOLDEN = [8976751251217322399, 8746962792094938516]
SHORT = [9801388843154561479, 9794110651237703121]


def test_bands_are_read_from_a_shard_one_at_a_time(tmp_path):
    tokenizer = Tokenizer(Tokenizer.train(TEXTS, 44).model_bytes)
    writer, signatures = ShardWriter(tmp_path / "s", [], tokenizer.size), []
    for text in TEXTS[:5]:
        document = Document(parts(text), text)
        signatures.append(signature(document))
        writer.add(tokenizer.encode_document(document.parts), [], text, signatures[-1])
    writer.close()
    stored = StoredBands(str(tmp_path / "s"))
    for band in (13, 0, 7):
        assert stored[band].tolist() == [each[band] for each in signatures]
