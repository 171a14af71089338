"""The text that a tokenizer is trained on, from files on a disk."""

import collections
import json
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from data_pipeline.command import data
from data_pipeline.documents import DataError
from data_pipeline.prepare.tokenizer_mix import SHARDS, Source, mix, spread, train_tokenizer
from data_pipeline.readers.jsonl import Jsonl
from data_pipeline.tokenizer import Tokenizer

WORDS = "whoever reads this sees words some of them twice and numbers from one to seven with dots".split()


def corpus(folder, files: int, documents: int) -> str:
    """JSON Lines whose lines of text begin with the number of their file; returns their pattern."""
    folder.mkdir()
    draw = random.Random(folder.name)
    for n in range(files):
        texts = ["\n".join(f"{n} {' '.join(draw.choices(WORDS, k=12))}" for _ in range(3)) for _ in range(documents)]
        (folder / f"{n:03}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"{folder}/*.jsonl"


def source(pattern: str, weight: float = 1.0) -> Source:
    return Source(Jsonl("train", dict(train=pattern)), weight)


def test_text_is_taken_in_proportion(tmp_path):
    sources = [source(corpus(tmp_path / name, 3, 200), weight) for name, weight in (("a", 3), ("b", 1), ("c", 0))]
    found = collections.Counter()
    for n, line in mix(sources, 40_000):
        found[n] += len(line)
    assert found == {0: 30_000, 1: 10_000}


def test_it_comes_from_all_over_a_source_and_as_much_from_each_place(tmp_path):
    found, longest = collections.Counter(), 0
    for _, line in mix([source(corpus(tmp_path / "a", 40, 30))], 20_000):
        found[int(line.split()[0])] += len(line)
        longest = max(longest, len(line))
    assert sorted(found) == list(range(0, 40, 5))
    assert max(found.values()) - min(found.values()) <= longest


def test_a_source_with_less_than_its_share_gives_every_line_once(tmp_path):
    small, large = corpus(tmp_path / "a", 11, 2), corpus(tmp_path / "b", 1, 300)
    lines = [line for file in (tmp_path / "a").iterdir() for row in file.read_text().splitlines()
             for line in json.loads(row)["text"].split("\n")]  # fmt: skip
    given = list(mix([source(small), source(large)], 40_000))
    assert collections.Counter(line for n, line in given if n == 0) == collections.Counter(lines)
    assert sum(len(line) for n, line in given if n == 1) == 20_000


def test_what_a_shard_does_not_have_the_others_give(tmp_path):
    pattern = corpus(tmp_path / "a", 2, 200)
    (tmp_path / "a/001.jsonl").write_text('{"text": "1 little"}')
    assert sum(len(line) for _, line in mix([source(pattern)], 10_000)) == 10_000


@given(st.integers(0, 100))
def test_shards_are_spread_and_none_is_lost(n):
    shards = [str(i) for i in range(n)]
    order = spread(shards)
    assert sorted(order, key=int) == shards
    first = [int(shard) for shard in order[:SHARDS]]
    assert n < 2 * SHARDS or max(first) >= n // 2


def test_what_cannot_be_read_and_lines_without_text_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "One.\\n\\n \\nTwo."}\n{"text": \n{"text": null}\n{"text": "Three."}')
    assert [line for _, line in mix([source(f"{tmp_path}/a.jsonl")], 1000)] == ["One.", "Two.", "Three."]


def config_of(tmp_path, vocab_size=45, **sources):
    return ConfigDict(dict(data=dict(tokenizer=dict(vocab_size=vocab_size), sources=sources)))


def entry(pattern: str, share=1.0, recipe="") -> dict:
    return dict(kind="jsonl", splits=dict(train=pattern), share=share, recipe=recipe)


def test_a_tokenizer_is_the_same_each_time_and_knows_the_words_of_each_source(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "zzyzx"}\n' * 100)
    config = config_of(
        tmp_path,
        words=entry(corpus(tmp_path / "a", 9, 50), ((0, 0.0), (10, 3.0))),
        other=entry(f"{tmp_path}/b.jsonl", 1.0),
    )
    outs = [str(tmp_path / "new" / name) for name in ("a.model", "b.model")]
    taken = [train_tokenizer(config, ["other", "words"], 2000, out) for out in outs]
    assert taken == [dict(other=500, words=1500)] * 2
    first, second = map(Tokenizer.load, outs)
    assert first.model_bytes == second.model_bytes
    assert first.unk not in first.encode("zzyzx reads words")


def test_the_command_writes_a_model_that_a_config_can_name(tmp_path):
    config, out = config_of(tmp_path, 35, words=entry(corpus(tmp_path / "a", 2, 50))), tmp_path / "new/mix.model"
    assert data(config, SimpleNamespace(action="tokenizer", source=[], characters=0, out=str(out))) == 0
    tokenizer = Tokenizer.load(out)
    assert tokenizer.decode(tokenizer.encode("whoever reads 1")) == "whoever reads 1"


def test_a_source_s_recipe_decides_what_is_learned(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n, text in enumerate(["words", "Ωμέγα"] * 50))
    )
    (tmp_path / "recipe.py").write_text(
        "from data_pipeline.prepare.filters import Rejection\n"
        "class Ascii:\n"
        "    name = 'ascii'\n"
        "    def apply(self, document):\n"
        "        return document if document.parts[0].text.isascii() else Rejection('other letters')\n"
        "def text():\n"
        "    return [Ascii()]\n"
    )
    config = config_of(tmp_path, 20, a=entry(f"{tmp_path}/a.jsonl", recipe=f"{tmp_path}/recipe.py:text"))
    train_tokenizer(config, ["a"], 0, str(tmp_path / "a.model"))
    tokenizer = Tokenizer.load(tmp_path / "a.model")
    assert tokenizer.unk in tokenizer.encode("Ωμέγα") and tokenizer.unk not in tokenizer.encode("words")


def test_too_little_text_or_no_weight_is_named_and_no_file_is_left(tmp_path):
    pattern = corpus(tmp_path / "a", 1, 3)
    with pytest.raises(DataError, match="vocab_size=5000 cannot be trained on 9 distinct lines"):
        train_tokenizer(config_of(tmp_path, 5000, a=entry(pattern)), ["a"], 0, str(tmp_path / "a.model"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="cannot be trained on 0 distinct lines"):
        train_tokenizer(config_of(tmp_path, a=entry(f"{tmp_path}/empty.jsonl")), ["a"], 0, str(tmp_path / "a.model"))
    with pytest.raises(DataError, match="the shares of a are 0"):
        train_tokenizer(config_of(tmp_path, 20, a=entry(pattern, 0.0)), ["a"], 0, str(tmp_path / "a.model"))
    assert not (tmp_path / "a.model").exists()
