"""The report says what every filter took, and its numbers add up."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.prepare.ledger import Ledger, read_ledger
from data_pipeline.prepare.report import as_markdown, report
from data_pipeline.prepare.run import prepare
from tests.data_pipeline.demo_data import image
from tests.data_pipeline.prepare.test_filters import ENGLISH, GERMAN, picture
from tests.data_pipeline.prepare.test_recipe import lines, recipe  # noqa: F401, a fixture
from tests.data_pipeline.prepare.test_run import job, texts

RECIPE = """
from data_pipeline.prepare.filters import English, Images, NearDuplicates

def pairs():
    return [English(0.3), Images(smallest=64), NearDuplicates()]
"""


@pytest.fixture
def prepared(tmp_path):
    """Pairs of which each step takes some; the folder."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "in").mkdir()
    for name, data in {"good": picture(), "icon": picture(9, 9), "bad": picture()[:900]}.items():
        (tmp_path / f"in/{name}.png").write_bytes(data)
    captions = [f"the {color} house stands on a green hill" for color in ("red", "blue", "grey", "white", "brown")]
    rows = [("good", text) for text in captions] + [("good", captions[0])] * 2
    rows += [("icon", captions[0]), ("bad", captions[1]), ("good", GERMAN), ("good", GERMAN), ("good", 0)]
    rows = [json.dumps(dict(file=f"{name}.png", text=text or None)) + "\n" for name, text in rows]
    (tmp_path / "in/a.jsonl").write_text("".join(rows))
    source = dict(kind="jsonl", splits=dict(train=f"{tmp_path}/in/a.jsonl"), template="{file:image}{text}")
    prepare(job(tmp_path / "out", source | dict(recipe=f"{tmp_path}/recipe.py:pairs"), [image()], max_skipped=5))
    return tmp_path / "out"


def test_what_is_left_after_each_step_adds_up(prepared):
    content = json.loads((prepared / "report.json").read_text())
    assert content["title"] == "corpus train" and content["read"] == 11
    assert list(content["left"].items()) == [
        ("read", 11), ("english", 9), ("images", 8), ("can be used", 7), ("near_duplicates", 5)]  # fmt: skip
    assert content["documents"] == 5 and content["items"] == {"image": 7}
    assert {kind: each["records"] for kind, each in content["skipped"].items()} == {"record": 1, "image": 1}
    rejected = {each["name"]: (each["rejected"], len(each["examples"])) for each in content["filters"]}
    assert rejected == {"english": (2, 2), "images": (1, 1), "near_duplicates": (2, 2)}
    assert [example.rsplit("/", 1)[1] for example in content["filters"][2]["examples"]] == ["a.jsonl:6", "a.jsonl:7"]
    assert content == report(read_ledger(str(prepared)), "corpus train")


def test_the_page_has_a_table_and_examples_and_the_picture_bars(prepared):
    page = (prepared / "report.md").read_text()
    assert "# corpus train" in page and "![Documents left after each filter](report.png)" in page
    assert "| images | 1 | 0 | 8 | 72.7% |" in page and "a.jsonl:8: under 64 pixels" in page
    assert "## Records that cannot be used (record): 1" in page
    pixels = np.asarray(Image.open(prepared / "report.png").convert("RGB"))
    blue = (np.abs(pixels.astype(int) - (0x3B, 0x6E, 0xA5)).max(axis=2) < 8).sum(axis=1)
    widths = [int(run.max()) for run in np.split(blue, np.flatnonzero(np.diff(blue > 0)) + 1) if run.max() > 0]
    assert len(widths) == 5 and np.allclose(np.array(widths) / widths[0], np.array([11, 9, 8, 7, 5]) / 11, atol=0.01)


def test_without_a_recipe_there_is_a_page_and_no_picture(tmp_path):
    prepare(job(tmp_path / "out", texts(tmp_path / "in", 1, 5)))
    assert "5 documents, of 5 that could be read." in (tmp_path / "out/report.md").read_text()
    assert not (tmp_path / "out/report.png").exists()


def test_examples_are_text_and_not_markdown():
    bad = "a.jsonl:1: # A title\n\n| a | table | <script>" + "x" * 1000
    filters = [dict(name="english", rejected=1, changed=0, examples=[bad])]
    ledger = Ledger("out", "key", "tokenizer", [], [], [], [], [], {"record": 1}, {"record": [bad]}, 1, filters)
    page = as_markdown(report(ledger, "corpus train"))
    shown = [line for line in page.splitlines() if "A title" in line]
    assert len(shown) == 2 and all(line.startswith("    a.jsonl:1: # A title | a |") for line in shown)
    assert max(map(len, page.splitlines())) < 210


def test_near_duplicates_and_the_report_are_there_before_the_ledger(tmp_path, recipe, monkeypatch):  # noqa: F811
    from data_pipeline.prepare import run

    source = lines(tmp_path / "in", [ENGLISH, ENGLISH]) | dict(recipe=f"{recipe}:unlike")

    def dies(ledger):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "write_ledger", dies)
        prepare(job(tmp_path / "out", source))
    assert {"dropped.npy", "report.json", "report.md", "report.png"} <= {f.name for f in (tmp_path / "out").iterdir()}
    assert read_ledger(str(tmp_path / "out")) is None
    assert prepare(job(tmp_path / "out", source)).duplicates == 1
    assert np.load(io.BytesIO((tmp_path / "out/dropped.npy").read_bytes())).tolist() == [False, True]
