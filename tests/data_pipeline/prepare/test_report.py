"""Reports on what filters did, of shards that were prepared and of any others."""

import io
import json
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.prepare.job import Job, report_name
from data_pipeline.prepare.report import EXAMPLES, JSON, MARKDOWN, NAMES, PICTURE, UNUSABLE, files, merged, steps
from data_pipeline.prepare.run import prepare
from data_pipeline.tokenizer import Tokenizer
from tests.inference.conftest import TEXTS

FILTERS = ("english", "images", "near_duplicates")


@st.composite
def shards(draw):
    """The report of one shard, where documents go only where they can."""
    count = st.integers(0, 1000)
    left = read = draw(count)
    filters = {}
    for name in FILTERS:
        rejected = draw(st.integers(0, left)) if name != "near_duplicates" else 0
        left -= rejected
        filters[name] = dict(
            rejected=rejected,
            changed=draw(count),
            examples=draw(st.lists(st.sampled_from(["a:1: de", "b:2: fr"]), max_size=5)),
        )
    unusable = draw(st.integers(0, left))
    skipped = dict(image=unusable) if unusable else {}
    examples = dict(image=["a.jsonl:7: truncated"]) if unusable else {}
    return dict(
        read=read,
        filters=filters,
        skipped=skipped,
        examples=examples,
        shards=[dict(documents=left - unusable)],
    )


@given(st.lists(shards(), max_size=5))
def test_every_document_that_was_read_is_rejected_once_or_left(reports):
    found = steps(merged(reports))
    read = sum(report["read"] for report in reports)
    assert not reports or [step.name for step in found] == [*FILTERS[:2], UNUSABLE, FILTERS[2]]
    assert [step.came for step in found] == [read, *(step.left for step in found[:-1])]
    assert found[-1].left == sum(shard["documents"] for report in reports for shard in report["shards"])
    assert all(step.rejected >= 0 for step in found)


@given(st.lists(shards(), min_size=2, max_size=6), st.data())
def test_reports_may_be_merged_in_any_groups(reports, data):
    cut = data.draw(st.integers(1, len(reports) - 1))
    at_once, in_two = merged(reports), merged([merged(reports[:cut]), merged(reports[cut:])])
    assert steps(at_once) == steps(in_two) and at_once["skipped"] == in_two["skipped"]


def test_examples_are_from_all_shards():
    def own(shard):
        return dict(rejected=5, changed=0, examples=[f"{shard}:{n}: de 0.90" for n in range(5)])

    reports = [
        dict(read=9, filters=dict(english=own(name)), skipped={}, examples={}, shards=[dict(documents=4)])
        for name in "abcd"
    ]
    examples = merged(reports)["filters"]["english"]["examples"]
    assert len(examples) == EXAMPLES and [each[0] for each in examples] == list("abcdabcdab")


@pytest.fixture
def prepared(tmp_path):
    """Two files of lines, prepared with a recipe; the reports of their shards and the ledger."""
    draw, words = random.Random(0), " ".join(TEXTS).split()
    for n in range(2):
        rows = [" ".join(draw.choices(words, k=8)) + (" <b>|`\n" if i % 3 else "") for i in range(30)]
        lines = [json.dumps({"text": row}) for row in [*rows, rows[0]]]
        (tmp_path / f"{n}.jsonl").write_text("\n".join([*lines, "{", '{"text": " "}']))
    (tmp_path / "recipe.py").write_text(
        "from data_pipeline.prepare.filters import NearDuplicates, Rejection\n"
        "class Plain:\n"
        "    name = 'plain'\n"
        "    def apply(self, document):\n"
        "        text = document.parts[0].text\n"
        "        return Rejection(text) if '<' in text else document\n"
        "def text():\n"
        "    return [Plain(), NearDuplicates()]\n"
    )
    source = dict(kind="jsonl", splits=dict(train=f"{tmp_path}/*.jsonl"), recipe=f"{tmp_path}/recipe.py:text")
    model = Tokenizer.train(TEXTS, 44).model_bytes
    ledger = prepare(Job("corpus", source, "train", (model, False, ()), f"{tmp_path}/out", 100))
    reports = [json.loads((tmp_path / "out" / report_name(n)).read_text()) for n in range(2)]
    return reports, ledger


def test_what_was_prepared_is_told_in_numbers_in_words_and_as_a_picture(prepared):
    reports, ledger = prepared
    report = merged(reports, ledger.duplicates)
    found = files("corpus train", report)
    assert tuple(found) == NAMES
    # Of 31 lines of a file 20 have a <, the first one comes again, and one is blank: it gives no tokens.
    assert [(step.name, step.came, step.left) for step in steps(report)] == [
        ("plain", 64, 24),
        (UNUSABLE, 24, 22),
        ("near_duplicates", 22, 20),
    ]
    told = json.loads(found[JSON])
    assert told["documents"] == 20 and told["steps"][0]["rejected"] == 40 and told["skipped"] == dict(record=4)
    page = found[MARKDOWN].decode()
    assert "64 documents were read, 20 are left" in page and f"({PICTURE})" in page
    assert "| plain | 64 | 40 | 62.5% | 0 | 24 |" in page and "is no JSON" in page
    assert all(line.startswith("    ") for line in page.splitlines() if "<b>" in line)
    assert Image.open(io.BytesIO(found[PICTURE])).size[0] == 880


def test_nothing_read_is_a_report_too():
    found = files("empty", merged([]))
    assert "0 documents were read" in found[MARKDOWN].decode() and found[PICTURE]


def test_without_matplotlib_there_is_no_picture_and_no_place_for_it(monkeypatch, prepared):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = files("corpus", merged(prepared[0]))
    assert set(found) == {JSON, MARKDOWN} and PICTURE not in found[MARKDOWN].decode()
