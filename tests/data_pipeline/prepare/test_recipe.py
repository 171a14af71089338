"""Recipes in prepare: found, applied, counted, part of the key; near-duplicates are in no row."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.documents import DataError, Document
from data_pipeline.plan import Plan
from data_pipeline.prepare import job as job_module
from data_pipeline.prepare.job import Worker
from data_pipeline.prepare.ledger import DROPPED, read_ledger
from data_pipeline.prepare.recipe import load_recipe
from data_pipeline.prepare.run import prepare
from data_pipeline.prepare.sources import read
from tests.data_pipeline.demo_data import image, parts
from tests.data_pipeline.prepare.test_filters import ENGLISH, GERMAN, picture
from tests.data_pipeline.prepare.test_run import Keys, contents, job, texts

ROOT = Path(__file__).parents[3]
RECIPE = """
import dataclasses
from typing import ClassVar
from data_pipeline.documents import Document, Text
from data_pipeline.prepare.filters import English, NearDuplicates, Rejection

@dataclasses.dataclass(frozen=True)
class Short:
    most: int = 60
    name: ClassVar[str] = "short"

    def apply(self, document):
        if "secret" in document.parts[0].text:
            return Rejection("secret")
        if len(document.parts[0].text) <= self.most:
            return document
        return Document((Text(document.parts[0].text[:self.most]),), document.where)

def own():
    return [English(0.5), Short()]

def unlike():
    return [NearDuplicates()]
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    return str(tmp_path / "recipe.py")


def lines(folder: Path, *files) -> dict:
    folder.mkdir()
    for n, own in enumerate(files):
        (folder / f"{n}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    return dict(kind="jsonl", splits=dict(train=f"{folder}/*.jsonl"))


@pytest.mark.parametrize("processes", [1, 2])
def test_filters_stand_between_reader_and_tokenizer_and_are_counted(tmp_path, recipe, processes):
    plain = "Boats came home and nobody on the quay said a word."
    source = lines(
        tmp_path / "in", [ENGLISH, GERMAN, plain], [GERMAN, "The secret of the quiet harbour is out.", plain]
    )
    source |= dict(recipe=f"{recipe}:own")
    ledger = prepare(job(tmp_path / "out", source), processes)
    assert ledger == read_ledger(str(tmp_path / "out"))
    assert ledger.read == 6 and sum(ledger.documents) == 3 and ledger.skipped == {}
    english, short = ledger.filters
    assert (english["name"], english["rejected"], english["changed"]) == ("english", 2, 0)
    assert (short["name"], short["rejected"], short["changed"]) == ("short", 1, 1)
    assert [example.split(": ")[0] for example in english["examples"]] == [
        f"{tmp_path}/in/0.jsonl:2", f"{tmp_path}/in/1.jsonl:1"]  # fmt: skip
    assert short["examples"] == [f"{tmp_path}/in/1.jsonl:2: secret: The secret of the quiet harbour is out."]
    kept = list(read(Keys(source), "train"))
    assert [document.parts[0].text for document in kept] == [ENGLISH[:60], plain, plain]
    assert [name for name, _ in contents(ledger)] == [document.where for document in kept]


def test_a_filter_with_a_mistake_is_named_with_the_document(tmp_path, recipe):
    broken = RECIPE.replace("return Document(", "return 1 / 0, Document(")
    Path(recipe).write_text(broken)
    source = lines(tmp_path / "in", [ENGLISH]) | dict(recipe=f"{recipe}:own")
    with pytest.raises(DataError, match="0.jsonl:1: the filter short fails: ZeroDivisionError: division by zero"):
        prepare(job(tmp_path / "out", source))


def test_examples_stay_few_and_short(tmp_path, recipe):
    source = lines(tmp_path / "in", *[["secret of the quiet harbour " * 100 + str(n) for n in range(30)]] * 6)
    ledger = prepare(job(tmp_path / "out", source | dict(recipe=f"{recipe}:own")))
    assert ledger.filters[1]["rejected"] == 180 and len(ledger.filters[1]["examples"]) == 20
    assert not ledger.documents and max(map(len, ledger.filters[1]["examples"])) <= 500
    report = json.loads((tmp_path / "out/000000.json").read_text())
    assert len(report["filters"]["short"]["examples"]) == job_module.EXAMPLES


def test_a_changed_recipe_is_another_job(tmp_path, recipe):
    source = lines(tmp_path / "in", [ENGLISH])
    key = {}
    for address in ("", f"{recipe}:own", f"{recipe}:unlike"):
        key[address] = Worker(job(tmp_path / "out", source | dict(recipe=address))).key
    assert len(set(key.values())) == 3
    assert Worker(job(tmp_path / "out", source)).key == key[""]
    prepare(job(tmp_path / "out", source | dict(recipe=f"{recipe}:own")))
    Path(recipe).write_text(RECIPE.replace("most: int = 60", "most: int = 61"))
    with pytest.raises(DataError, match="was prepared from other files"):
        prepare(job(tmp_path / "out", source | dict(recipe=f"{recipe}:own")))


def test_a_changed_evaluation_set_is_another_job(tmp_path):
    (tmp_path / "recipe.py").write_text(
        "from data_pipeline.prepare.filters import Decontaminated\n"
        f"def clean():\n    return [Decontaminated(sets=('{tmp_path}/*.txt',))]\n"
    )
    keys = set()
    for n, text in enumerate((ENGLISH, GERMAN)):
        (tmp_path / f"{n}.txt").write_text(text)
        from data_pipeline.prepare.filters import contamination

        contamination._known.cache_clear()  # as in another process
        keys.add(load_recipe(f"{tmp_path}/recipe.py:clean").key)
    assert len(keys) == 2


def test_a_recipe_with_a_mistake_says_what_is_there(tmp_path, recipe):
    for address, message in {
        f"{tmp_path}/recip.py:own": "there is no file .*recip.py; write FILE.py:FUNCTION",
        recipe: "there is no file",
        "own": "there is no file own",
        f"{recipe}:owm": "'owm' is none of .*own.*did you mean own",
        f"{tmp_path}/bad.py:f": "SyntaxError",
        f"{tmp_path}/raises.py:f": "ZeroDivisionError: division by zero",
        f"{tmp_path}/none.py:f": "returns NoneType; write FILE.py:FUNCTION, a function without arguments that returns",
        f"{tmp_path}/other.py:f": "'english' has no name and apply",
        f"{tmp_path}/twice.py:f": "has 2 filters with the name english",
    }.items():
        (tmp_path / "bad.py").write_text("def f(:\n")
        (tmp_path / "raises.py").write_text("def f():\n    1 / 0\n")
        (tmp_path / "none.py").write_text("def f():\n    pass\n")
        (tmp_path / "other.py").write_text("def f():\n    return ['english']\n")
        english = "from data_pipeline.prepare.filters import English\ndef f():\n    return [English(), English(0.5)]\n"
        (tmp_path / "twice.py").write_text(english)
        with pytest.raises(DataError, match=message):
            load_recipe(address)
    assert load_recipe("").filters == () and load_recipe("").key == ""


def test_the_recipes_here_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("text", "captions", "pages"):
        for file in ("kosmos1", "debian"):
            assert load_recipe(f"configs/recipes/{file}.py:{name}").filters
    assert load_recipe("configs/recipes/kosmos1.py:pages").near_duplicates


def test_the_paper_s_recipe_for_pages_and_pairs():
    pages, captions = (load_recipe(f"configs/recipes/kosmos1.py:{name}") for name in ("pages", "captions"))
    icon, good = picture(32, 32), picture()
    sentences = "Boats came home. Nobody spoke on the quay. The storm had passed. The lamps were lit. "
    inner = ("A gull sat on the mast and looked at them.", icon, "Then it flew away over the grey water.")
    page = Document(parts(sentences, good, ENGLISH, good, *inner, good, "In the morning they went out again."), "a")
    left, done = pages.apply(page)
    assert [name for name, why in done if not why] == ["images", "surroundings"]
    assert left.parts[0].text == sentences.split(". ", 1)[1] and left.parts[4].text == "\n".join(inner[::2])
    assert pages.apply(Document(parts(sentences, icon), "a"))[1] == [("images", "under 64 pixels")]
    assert pages.apply(Document(parts(GERMAN, good), "a"))[0] is None
    assert captions.apply(Document(parts(good, "a red house on a hill"), "a"))[1] == [("images", "under 200 pixels")]
    large = picture(300, 200)
    kept = Document(parts(large, "a red house on a green hill in the morning"), "a")
    assert captions.apply(kept) == (kept, [])
    assert captions.apply(Document(parts(large, "a photo of <PERSON> in front of the house"), "a"))[0] is None


def test_near_duplicates_are_in_no_row(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(job_module, "DOCUMENTS", 7)  # several shards of a file
    source = texts(tmp_path / "in", 3, 20)
    again = (tmp_path / "in/00.jsonl").read_text().splitlines()[3:9]
    (tmp_path / "in/03.jsonl").write_text("\n".join(again * 2))
    everything = prepare(job(tmp_path / "all", source))
    ledger = prepare(job(tmp_path / "out", source | dict(recipe=f"{recipe}:unlike")), 2)
    assert contents(ledger) == contents(everything)  # they are in the shards
    dropped, seen, expected = np.load(tmp_path / "out" / DROPPED), set(), []
    for _, tokens in contents(ledger):
        expected.append(tuple(tokens) in seen)
        seen.add(tuple(tokens))
    assert dropped.tolist() == expected and ledger.duplicates == sum(expected) >= 12
    plan = Plan(ledger, 64, 1, (), (), tmp_path / "plans")
    assert sum(ledger.documents) == len(dropped) and plan.skipped == {}
    in_rows = set()
    for block in range(len(ledger.blocks) - 1):
        first = sum(ledger.documents[: ledger.blocks[block]])
        in_rows |= {first + document for document in plan.block(block)["pieces"][:, 0].tolist()}
    assert in_rows == set(np.flatnonzero(~dropped).tolist())
    without = Plan(everything, 64, 1, (), (), tmp_path / "plans")
    assert without.key != plan.key and without.summaries[:, 1].sum() > plan.summaries[:, 1].sum()


def test_near_duplicates_are_the_same_whatever_else_was_killed_or_how_many_worked(tmp_path, recipe):
    source = texts(tmp_path / "in", 3, 30) | dict(recipe=f"{recipe}:unlike")
    (tmp_path / "in/02.jsonl").write_text((tmp_path / "in/00.jsonl").read_text())
    jobs = [job(tmp_path / name, source) for name in "ab"]
    prepare(jobs[0], 2)
    assert prepare(jobs[1], part=(1, 2)) is None  # the first shard comes last
    prepare(jobs[1], part=(0, 2))
    files = [{f.name: f.read_bytes() for f in sorted(Path(j.folder).glob("*")) if f.suffix != ".png"} for j in jobs]
    assert files[0].keys() == files[1].keys()
    assert {name for name in files[0] if files[0][name] != files[1][name]} == set()


def test_a_document_that_a_filter_leaves_no_picture_of_is_no_record_that_cannot_be_read(tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("RGB", (300, 300), "white").save(tmp_path / "in/a.png")
    file = io.BytesIO(picture(300, 300))
    (tmp_path / "in/b.png").write_bytes(file.getvalue())
    rows = [dict(file=name, text="A house on a green hill in the morning.") for name in ("a.png", "b.png")]
    (tmp_path / "in/c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = dict(kind="jsonl", splits=dict(train=f"{tmp_path}/in/c.jsonl"), template="{file:image}{text}")
    source |= dict(recipe="configs/recipes/kosmos1.py:captions")
    ledger = prepare(job(tmp_path / "out", source, [image()]))
    assert ledger.skipped == {} and ledger.documents == [1] and ledger.filters[0]["rejected"] == 1
    assert ledger.filters[0]["examples"] == [f"{tmp_path}/in/c.jsonl:1: of one colour: {rows[0]['text']}"]


def test_near_duplicates_in_a_bucket_are_those_on_a_disk(tmp_path, recipe):
    source = texts(tmp_path / "in", 2, 20) | dict(recipe=f"{recipe}:unlike")
    (tmp_path / "in/01.jsonl").write_text((tmp_path / "in/00.jsonl").read_text())
    folder = f"memory://{tmp_path.name}/out"
    on_disk, in_bucket = prepare(job(tmp_path / "out", source)), prepare(job(folder, source))
    assert on_disk.duplicates >= 20
    assert {**vars(read_ledger(folder)), "folder": ""} == {**vars(read_ledger(str(tmp_path / "out"))), "folder": ""}
    assert in_bucket.dropped_of(0).tolist() == on_disk.dropped_of(0).tolist()
