"""The page of a batch: every token of its rows in order, escaped, with its media; numbers that others count too."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.documents import DataError, Media
from data_pipeline.inspect_page import inspect
from data_pipeline.inspect_rows import packed_rows
from data_pipeline.mixture import Mixture
from data_pipeline.readers import KINDS, make_reader
from data_pipeline.statistics import aligned, as_text, edges_of, left_out, printable, sparkline, statistics
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.wav import wav
from kosmos_jax.modality import modalities
from tests.data_pipeline.demo_data import ListSource, demo_config

EMPTY = {"meta", "br", "img"}


class Page(html.parser.HTMLParser):
    """What a browser makes of a page.

    Attributes:
      rows: of each row its tokens, as (written, learned), and the address of each picture and sound.
      names: the heads of the boxes.
      tags, addresses, heads: what there is of each, in order.
    """

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.names, self.tags, self.addresses, self.heads, self.open = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.addresses += [found[key] for key in ("src", "href", "data", "poster") if key in found]
        if tag == "article":
            self.rows.append([])
        if tag in ("img", "audio"):
            self.rows[-1].append(found["src"])
        if tag in ("mark", "span") and "section" in self.open and not {"class", "role"} & set(found):
            self.rows[-1].append(("", tag == "mark"))
        if tag in ("h1", "h2", "h3", "h4"):
            self.heads.append([int(tag[1]), ""])
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] and self.open[-1][0] == "h" and self.open[-1] != "html" and self.open[-1] != "head":
            self.heads[-1][1] += data
        inside = [tag for tag in self.open if tag != "code"][-1:]
        if "section" in self.open and "p" in self.open and inside in (["mark"], ["span"]):
            written, learned = self.rows[-1][-1]
            self.rows[-1][-1] = (written + data, learned)


def page_of(mixture, folder, step=0, **options) -> Page:
    inspect(mixture, step, folder / "page.html", **options)
    return Page((folder / "page.html").read_text("utf-8"))


def expected(mixture, step: int, most: int) -> list[list]:
    """The rows of a page from the batch's arrays alone."""
    arrays, _ = mixture.batch(step)
    rows = []
    for s in range(len(mixture.names)):
        for a, row in np.argwhere(arrays["row_source"] == s)[:most]:
            tokens, slots, segments = (arrays[key][a, row] for key in ("tokens", "slots", "segment_ids"))
            learned = [False, *(arrays["targets"][a, row, :-1] >= 0)]
            rows.append([])
            for token, slot, segment, is_learned in zip(tokens, slots, segments, learned, strict=True):
                if slot >= 0 and slot % 8 == 0:
                    rows[-1].append(arrays["media"]["image"][a, slot // 8])
                elif segment and slot < 0:
                    rows[-1].append((mixture.tokenizer.token(int(token)).replace("▁", " "), bool(is_learned)))
    return rows


def same(found: list[list], rows: list[list]) -> bool:
    """Whether rows of a page are those; pictures as pixels."""

    def equal(a, b):
        return np.array_equal(pixels(a), b) if isinstance(a, str) else a == b

    pairs = [(len(own), len(other), zip(own, other, strict=False)) for own, other in zip(found, rows, strict=True)]
    return all(m == n and all(equal(*pair) for pair in each) for m, n, each in pairs)


def pixels(address: str) -> np.ndarray:
    form, data = address.split(",")
    assert form == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def demo(tokenizer, cache):
    return Mixture(demo_config(), tokenizer, "train", cache)


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_every_token_and_every_picture_is_there_in_order_and_what_is_learned(
    tokenizer, cache, tmp_path, isolate, microbatches
):
    changes = dict(training__microbatches=microbatches, data__batch_rows=8 * microbatches)
    mixture = Mixture(demo_config(data__isolate_documents=isolate, **changes), tokenizer, "train", cache)
    found = page_of(mixture, tmp_path, step=2, rows=3).rows
    assert len(found) == (7 if microbatches == 1 else 9)
    assert same(found, expected(mixture, 2, 3))


@pytest.mark.parametrize("isolate", [True, False])
def test_a_box_has_the_name_of_its_document(demo, tokenizer, cache, isolate):
    mixture = Mixture(demo_config(data__isolate_documents=isolate), tokenizer, "train", cache)
    reader = make_reader(demo.config.data.sources.captions, "train")
    documents = {document.where: document for shard in reader.shards() for document in reader.read(shard)}
    captions = mixture.names.index("captions")
    segments = [segment for row in packed_rows(mixture, 5, 8) if row.source == captions for segment in row.segments]
    assert len(segments) > 8
    for segment in segments:
        body = tokenizer.encode_document(documents[segment.name].parts).tokens
        assert (segment.start, segment.stop, segment.length) == (0, len(body), len(body))
        assert segment.tokens.tolist() == [tokenizer.bos, *body, tokenizer.eos]


def test_pieces_of_a_text_say_which_they_are(demo):
    rows = [row for row in packed_rows(demo, 0, 8) if demo.names[row.source] == "text"]
    (first, *_), *_ = (row.segments for row in rows)
    assert first.stop - first.start < first.length and len(first.tokens) <= 256


def test_the_page_needs_nothing_from_elsewhere_and_has_headings_and_heads_of_tables(demo, tmp_path):
    page = page_of(demo, tmp_path, rows=2)
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    levels = [level for level, _ in page.heads if level]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    text = (tmp_path / "page.html").read_text()
    assert "url(" not in text and "@import" not in text
    assert text.count('<th scope="row">') == 3 and text.count('<th scope="col"') >= 10
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200
        picture.load()


def hostile(tokenizer, tmp_path, monkeypatch, documents):
    monkeypatch.setitem(KINDS, "list", lambda split: ListSource(documents))
    config = demo_config(data__batch_rows=2)
    config.data.sources = {"$<i>$": dict(kind="list", share=1.0, per_row=dict(image=0))}
    return Mixture(config, tokenizer, "train", tmp_path)


def test_what_documents_say_is_shown_and_not_run(tokenizer, tmp_path, monkeypatch):
    evil = "<script>alert(1)</script> &amp; <b>bold</b> \u202e $\\frac$."
    why = "no </table><script>\n\x1b[31m here"
    mixture = hostile(tokenizer, tmp_path, monkeypatch, [(evil,)] * 40 + [why])
    page = page_of(mixture, tmp_path)
    assert same(page.rows, expected(mixture, 0, 8))
    assert not {"script", "b"} & set(page.tags)
    text = (tmp_path / "page.html").read_text()
    assert "list[40]: no &lt;/table&gt;&lt;script&gt; \ufffd[31m here" in text
    told = as_text(statistics(mixture))
    assert told.isascii() or all(c.isprintable() or c == "\n" for c in told)
    assert "1 left out (record), such as\n    list[40]: no </table><script>" in told


@pytest.mark.parametrize("isolate", [True, False])
def test_a_document_that_cannot_be_read_any_more_is_named_and_others_stay(tokenizer, tmp_path, isolate):
    config = demo_config(data__isolate_documents=isolate)
    config.data.sources = dict(captions=config.data.sources.captions)
    mixture = Mixture(config, tokenizer, "train", tmp_path)
    before = packed_rows(mixture, 0, 1)[0]
    lost = before.segments[2].name
    (member,) = mixture.members
    ((shard, _, _),) = member.plan.shards(0)
    d = [shard.name(d) for d in range(len(shard))].index(lost)
    m = int(shard.first_item[d])
    with open(f"{shard.path}.media", "r+b") as file:
        file.seek(int(shard.offsets[m]))
        file.write(b"\0" * int(shard.sizes[m]))
    page, after = page_of(mixture, tmp_path, rows=1), packed_rows(mixture, 0, 1)[0]
    assert [segment.name for segment in after.segments] == [s.name for s in before.segments if s.name != lost]
    assert after.left_out[0].startswith(lost) and len(after.left_out) == 1
    assert lost not in [name for level, name in page.heads if level == 4]
    assert f"Left out: {lost}" in (tmp_path / "page.html").read_text()


def test_sounds_are_drawn_and_can_be_heard(tokenizer, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    swell = np.sin(np.arange(12000) * 0.2) * np.linspace(0, 9000, 12000)
    (tmp_path / "a.wav").write_bytes(wav(swell.astype(np.int16), 16000))
    (tmp_path / "train.csv").write_text("file,text\n" + "a.wav,It rises.\n" * 9)
    source = dict(kind="table", splits={"train": f"{tmp_path}/train.csv"}, template="{file:audio}{text}")
    config = demo_config(data__batch_rows=2)
    config.model.perception.audio = ConfigDict({"tokens": 4, "shape": (16000,), "dtype": "int16"})
    config.data.sources = dict(speech=source | dict(share=1.0, per_row=dict(audio=8)))
    listening = Tokenizer(tokenizer.model_bytes, modalities=modalities(config.model))
    mixture = Mixture(config, listening, "train", tmp_path / "cache")
    page, (row, *_) = page_of(mixture, tmp_path, rows=1), packed_rows(mixture, 0, 1)
    assert [address[:23] for address in page.addresses] == ["data:audio/mpeg;base64,"] * len(row.items)
    assert page.tags.count("svg") == len(row.items) > 2
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(page.addresses[0][23:])))
    loudness = [np.abs(sound[2000:10000]).reshape(8, 1000).max(axis=1) for sound in (heard, row.items[0].value)]
    assert rate == 16000 and 12000 <= len(heard) < 16000
    assert np.corrcoef(*loudness)[0, 1] > 0.95


@pytest.mark.parametrize("step, rows", [(-1, 8), (0, 0)])
def test_what_there_is_nothing_of_is_no_page(demo, tmp_path, step, rows):
    with pytest.raises(DataError, match="steps count from 0"):
        inspect(demo, step, tmp_path / "page.html", rows)
    assert not list(tmp_path.iterdir())


def test_statistics_are_what_the_readers_give(demo):
    found = json.loads(json.dumps(statistics(demo)))
    used, positions = np.zeros(3), np.zeros(3)
    for s, (name, source) in enumerate(demo.config.data.sources.items()):
        reader = make_reader(source, "train")
        documents = [document for shard in reader.shards() for document in reader.read(shard)]
        lengths = [len(demo.tokenizer.encode_document(document.parts).tokens) for document in documents]
        media = sum(isinstance(part, Media) for document in documents for part in document.parts)
        each = found[name]
        assert (each["documents"], each["tokens"], each["items"]["image"]) == (len(documents), sum(lengths), media)
        assert each["lengths"] == np.quantile(lengths, (0, 0.1, 0.5, 0.9, 1)).astype(int).tolist()
        edges = each["histogram"]["edges"]
        within = [sum(a <= n < b for n in lengths) for a, b in zip(edges, edges[1:], strict=False)]
        assert each["histogram"]["counts"] == within and sum(within) == len(documents)
        assert each["epochs"] == demo.epoch(demo.config.training.steps)[name]
        assert each["epochs"] == pytest.approx(100 * each["rows_a_step"] / each["rows_an_epoch"])
        if name != "text":
            assert each["item_fill"]["image"] * each["rows_an_epoch"] * source.per_row.image == pytest.approx(media)
            used[s] = sum(lengths) + 2 * len(lengths)
            positions[s] = each["text_fill"] * each["rows_an_epoch"] * 256
    np.testing.assert_allclose(used, positions)


def test_numbers_for_the_terminal_stand_in_columns(demo):
    found = statistics(demo)
    for table in as_text(found).split("\n\n"):
        head, *lines = table.splitlines()
        assert [line.split()[0] for line in lines] == list(demo.names)
        ends = [match.end() for match in re.finditer(r"\S+( \S+)*", head)]
        assert all(re.match(r"\S", line[end - 1]) and line[end : end + 1] in " " for line in lines for end in ends[1:])
    assert f"{found['interleaved']['tokens']:,}" in as_text(found)


def test_a_source_that_will_be_seen_too_often_is_named(tokenizer, cache, tmp_path):
    config = demo_config()
    config.data.sources.captions.epochs = 0.5
    mixture = Mixture(config, tokenizer, "train", cache)
    (warning,) = mixture.epoch_warnings()
    assert "captions will have been seen" in warning and "data.sources.captions.epochs is 0.5" in warning
    assert "OVER ITS LIMIT of 0.5" in as_text(statistics(mixture))
    page_of(mixture, tmp_path, rows=1)
    assert (tmp_path / "page.html").read_text().count("over its limit of 0.5") == 1


RECIPE = """
from data_pipeline.prepare.filters import NearDuplicates, Rejection


class NoNines:
    name = "no_nines"

    def apply(self, document):
        return Rejection("a <9>") if "9" in document.where else document


def get_recipe():
    return [NoNines(), NearDuplicates()]
"""


def test_what_filters_readers_and_rows_take_is_told(tokenizer, tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    texts = [(" ".join(f"{word} {i}" for word in ("one", "two", "three") * 4),) for i in range(8)]
    documents = [*texts, ("This is the same text in two documents of one source of these.",)]
    documents += [documents[-1], ("With a picture", picture.getvalue()), "no record", documents[8]]
    monkeypatch.setitem(KINDS, "list", lambda split: ListSource(documents))
    (tmp_path / "recipe.py").write_text(RECIPE)
    config = demo_config(data__batch_rows=1)
    source = dict(kind="list", share=1.0, per_row=dict(image=0), recipe=f"{tmp_path}/recipe.py:get_recipe")
    config.data.sources = dict(mine=source)
    mixture = Mixture(config, tokenizer, "train", tmp_path)
    (each,) = statistics(mixture).values()
    lost = {how: (n, examples[0].split(":")[0].split(" ")[0]) for how, n, examples in left_out(each)}
    assert lost == {
        "record": (1, "list[11]"),
        "row": (1, "list[10]"),
        "no_nines": (1, "list[9]"),
        "near_duplicates": (1, "list[12]"),
    }
    page = page_of(mixture, tmp_path)
    assert page.tags.count("table") == 2 and "no_nines" in (tmp_path / "page.html").read_text()


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=50))
def test_every_length_is_in_one_bin(lengths):
    counts, _ = np.histogram(lengths, edges_of(np.array(lengths)))
    assert counts.sum() == len(lengths) and len(counts) <= 24
    assert [c == " " for c in sparkline(counts.tolist())] == [n == 0 for n in counts]


@given(st.text(st.characters(exclude_categories=[])))
def test_what_is_printed_is_one_line_that_utf_8_can_hold(text):
    assert printable(text).isprintable() and len(printable(text).encode()) >= len(printable(text))


def test_tables_are_aligned():
    assert aligned([["a", "b", ""], ["long", "1,000", "!"]]) == ["a         b", "long  1,000  !"]
