"""A tokenizer's text is the mixture's: in proportion, from all over each source, after its recipe."""

import json
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from data_pipeline.command import data
from data_pipeline.documents import DataError
from data_pipeline.prepare import tokenizer_mix
from data_pipeline.prepare.tokenizer_mix import texts_of, train_tokenizer
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.demo_data import demo_config
from tests.data_pipeline.prepare.test_filters import ENGLISH, GERMAN


def source(folder, files: int, lines: int, word: str = "word", share=1.0, **more) -> dict:
    """Files of lines of ten characters, "word  3 17" of file 3, line 17."""
    folder.mkdir()
    for n in range(files):
        rows = [json.dumps({"text": f"{word} {n:2d} {i:2d}"}) + "\n" for i in range(lines)]
        (folder / f"{n:03}.jsonl").write_text("".join(rows))
    return ConfigDict(dict(kind="jsonl", splits=dict(train=f"{folder}/*.jsonl"), share=share, per_row={}, **more))


def config(**sources):
    found = demo_config()
    found.data.sources = ConfigDict(sources)
    found.data.tokenizer.vocab_size = 20
    return found


def test_text_comes_from_shards_all_over_a_source(tmp_path):
    texts = list(texts_of(source(tmp_path / "in", 96, 10), 320))
    assert sum(map(len, texts)) == 320 and len(texts) == 32
    assert [int(text.split()[1]) for text in texts] == list(range(0, 96, 3))


def test_shards_with_little_are_made_up_for_by_the_others(tmp_path):
    own = source(tmp_path / "in", 40, 5)
    for n in range(0, 40, 2):
        (tmp_path / f"in/{n:03}.jsonl").write_text("")
    assert sum(map(len, texts_of(own, 600))) == 600
    everything = list(texts_of(own, 10**6))
    assert len(everything) == len(set(everything)) == 100
    assert not list(texts_of(own, 0))


def test_sources_give_text_in_proportion_to_their_shares(tmp_path, monkeypatch):
    sources = dict(
        a=source(tmp_path / "a", 3, 90, "aaaa", 0.5),
        b=source(tmp_path / "b", 3, 90, "bbbb", ((0, 0.1), (10, 0.25))),
        c=source(tmp_path / "c", 3, 90, "cccc", 4.0),
    )
    used = []
    train = Tokenizer.train
    monkeypatch.setattr(Tokenizer, "train", lambda texts, *rest: used.extend(texts) or train(used, *rest))
    train_tokenizer(config(**sources), ["a", "b"], 1500, str(tmp_path / "out/mix.model"))
    counts = {word: sum(len(text) for text in used if text.startswith(word[0])) for word in ("aaaa", "bbbb", "cccc")}
    assert counts == {"aaaa": 1000, "bbbb": 500, "cccc": 0}


def test_it_is_trained_on_what_the_recipe_leaves(tmp_path):
    own = source(tmp_path / "in", 1, 0, recipe="configs/recipes/kosmos1.py:text")
    (tmp_path / "in/000.jsonl").write_text(json.dumps({"text": GERMAN}) + "\n" + json.dumps({"text": ENGLISH}) + "\n")
    assert list(texts_of(own, 1000)) == [ENGLISH]


def test_the_command_writes_a_model_that_a_config_can_name(tmp_path):
    own = config(a=source(tmp_path / "a", 2, 90, "harbour"))
    out = tmp_path / "new/mix.model"
    args = SimpleNamespace(action="tokenizer", source=[], characters=0, out=str(out))
    assert data(own, args) == 0
    tokenizer = Tokenizer.load(out)
    assert tokenizer.decode(tokenizer.encode("harbour 7")) == "harbour 7"
    assert tokenizer.size == 20 + 1 + len(tokenizer.tags)
    first = out.read_bytes()
    data(own, args)
    assert out.read_bytes() == first


def test_no_text_or_too_little_is_said(tmp_path):
    empty = source(tmp_path / "in", 1, 0)
    with pytest.raises(DataError, match="the training splits of a have no text"):
        train_tokenizer(config(a=empty), ["a"], 0, str(tmp_path / "mix.model"))
    little = config(a=source(tmp_path / "more", 1, 3))
    little.data.tokenizer.vocab_size = 4000
    with pytest.raises(DataError, match="vocab_size=4000 cannot be trained on 3 distinct lines"):
        train_tokenizer(little, ["a"], 0, str(tmp_path / "mix.model"))
    assert tokenizer_mix.CHARACTERS >= 20_000_000
