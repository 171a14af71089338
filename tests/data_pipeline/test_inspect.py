"""The page of a batch: every token of its rows, escaped, with its pictures; statistics that others count too."""

import html
import re

import numpy as np
import pytest
from PIL import Image

from data_pipeline.documents import Media, Text
from data_pipeline.inspect_page import chosen_rows, inspect
from data_pipeline.mixture import Mixture
from data_pipeline.readers import KINDS, make_reader
from data_pipeline.statistics import as_text, statistics
from tests.data_pipeline.demo_data import ListSource, demo_config


@pytest.fixture(scope="module")
def demo(tokenizer, cache):
    return Mixture(demo_config(), tokenizer, "train", cache)


def text_in(page: str) -> str:
    """What a reader sees, without spaces, tags and names of documents."""
    not_text = r"<cite>.*?</cite>|<span class=.tag.>.*?</span>|<h\d.*?</h\d>"
    page = re.sub(not_text, "", page, flags=re.DOTALL)
    return "".join(html.unescape(re.sub(r"<[^>]*>", "", page[page.index("</table>") :])).split())


def test_every_token_of_the_rows_is_there_in_order_and_every_picture(demo, tmp_path):
    inspect(demo, 2, str(tmp_path / "page.html"), rows=3)
    page = (tmp_path / "page.html").read_text()
    arrays, _ = demo.batch(2)
    rows, tokenizer = chosen_rows(arrays["row_source"][0], 3), demo.tokenizer
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad, *tokenizer.tag_ids.values()}
    pieces = [tokenizer.token(int(t)) for row in rows for t in arrays["tokens"][0, row] if int(t) not in special]
    assert text_in(page) == "".join(pieces).replace("▁", "").replace(" ", "")
    assert page.count("<img ") == sum(len(set(s[s >= 0] // 8)) for s in arrays["slots"][0, rows])
    assert page.count("<article") == len(rows) == 7 and "digit_documents/train[" in page
    assert "http" not in page, "the page needs nothing from elsewhere"
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size[0] == 1024


def test_what_documents_say_is_shown_and_not_run(tokenizer, tmp_path, monkeypatch):
    evil = "<script>alert(1)</script> & <b>bold</b>."
    monkeypatch.setitem(KINDS, "list", lambda split: ListSource([(evil,)] * 40))
    config = demo_config(data__batch_rows=2)
    config.data.sources = dict(text=dict(kind="list", share=1.0, per_row=dict(image=0)))
    inspect(Mixture(config, tokenizer, "train", tmp_path), 0, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page.replace(" ", "")


def test_statistics_are_what_the_readers_give(demo):
    found = statistics(demo)
    for name, source in demo.config.data.sources.items():
        reader = make_reader(source, "train")
        documents = [document for shard in reader.shards() for document in reader.read(shard)]
        lengths = [len(demo.tokenizer.encode_document(document.parts).tokens) for document in documents]
        media = sum(isinstance(part, Media) for document in documents for part in document.parts)
        assert sum(isinstance(part, Text) for document in documents for part in document.parts)
        each = found[name]
        assert (each["documents"], each["tokens"], each["items"]["image"]) == (len(documents), sum(lengths), media)
        assert each["lengths"] == np.quantile(lengths, (0, 0.1, 0.5, 0.9, 1)).astype(int).tolist()
        assert each["epochs"] == demo.epoch(demo.config.training.steps)[name]
    assert "interleaved: 20,000 documents" in as_text(found)


def test_a_source_that_will_be_seen_too_often_is_named(tokenizer, cache):
    config = demo_config()
    config.data.sources.captions.epochs = 0.5
    mixture = Mixture(config, tokenizer, "train", cache)
    (warning,) = mixture.epoch_warnings()
    assert "captions will have been seen" in warning and "data.sources.captions.epochs is 0.5" in warning
    assert "OVER ITS LIMIT of 0.5" in as_text(statistics(mixture))
