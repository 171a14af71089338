"""Preparing: what is written is what was read, once, whoever is killed in between."""

import dataclasses
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.documents import DataError, Document
from data_pipeline.prepare import job as job_module
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.ledger import read_ledger
from data_pipeline.prepare.run import prepare
from data_pipeline.readers import make_reader
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.demo_data import image
from tests.inference.conftest import TEXTS

ROOT = Path(__file__).parents[3]
MODEL = Tokenizer.train(TEXTS, 44).model_bytes


class Keys(dict):
    __getattr__ = dict.__getitem__


def job(folder, source, modalities=(), max_skipped=0):
    return Job("corpus", source, "train", (MODEL, False, tuple(modalities)), str(folder), max_skipped)


def texts(folder: Path, files: int, lines: int) -> dict:
    """A source of JSON Lines."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    words = " ".join(TEXTS).split()
    for n in range(files):
        rows = [" ".join(draw.choices(words, k=draw.randint(1, 40))) for _ in range(lines)]
        (folder / f"{n:02}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return dict(kind="jsonl", splits=dict(train=f"{folder}/*.jsonl"))


def contents(ledger) -> list[tuple[str, list[int]]]:
    """Name and tokens of every document, in order."""
    found = []
    for block in range(len(ledger.blocks) - 1):
        for shard in ledger.shards(block, Path("unused")):
            bodies = [shard.tokens[shard.first[d] : shard.first[d + 1]].tolist() for d in range(len(shard))]
            found += [(shard.name(d), body) for d, body in enumerate(bodies)]
    return found


def expected(source) -> list[tuple[str, list[int]]]:
    reader, tokenizer = make_reader(Keys(source), "train"), Tokenizer(MODEL)
    documents = [document for shard in reader.shards() for document in reader.read(shard)]
    return [(d.where, tokenizer.encode_document(d.parts).tokens.tolist()) for d in documents if isinstance(d, Document)]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_document_is_there_in_order_with_its_tokens(tmp_path, processes, monkeypatch):
    source = texts(tmp_path / "in", 3, 50)
    monkeypatch.setattr(job_module, "DOCUMENTS", 20)  # several shards of one file
    ledger = prepare(job(tmp_path / "out", source), processes)
    assert contents(ledger) == expected(source)
    if processes == 1:
        assert ledger.documents == [20, 20, 10] * 3
    assert contents(read_ledger(str(tmp_path / "out"))) == expected(source)


def test_parts_together_are_all_and_the_last_one_writes_the_ledger(tmp_path):
    source = texts(tmp_path / "in", 5, 10)
    first = prepare(job(tmp_path / "out", source), part=(1, 2))
    assert first is None and read_ledger(str(tmp_path / "out")) is None
    assert contents(prepare(job(tmp_path / "out", source), part=(0, 2))) == expected(source)


def test_a_folder_of_other_data_is_refused_and_stays_as_it_is(tmp_path):
    source, out = texts(tmp_path / "in", 1, 5), tmp_path / "out"
    before = contents(prepare(job(out, source)))
    with pytest.raises(DataError, match="was prepared from other files, with another tokenizer, or otherwise"):
        prepare(job(out, source | dict(template="{text} More.")))
    (tmp_path / "in/01.jsonl").write_text('{"text": "One more file."}')
    with pytest.raises(DataError, match="was prepared from other files"):
        prepare(job(out, source))
    assert contents(read_ledger(str(out))) == before


def test_over_the_budget_it_stops_and_names_the_last_record(tmp_path):
    source = texts(tmp_path / "in", 2, 5)
    with open(tmp_path / "in/01.jsonl", "a") as file:
        file.write("torn\npages\n")
    with pytest.raises(DataError, match=r"2 records cannot be read \(corpus/record: 2\).*is 1.*01.jsonl:7: is no JSON"):
        prepare(job(tmp_path / "out", source, max_skipped=1))
    ledger = prepare(job(tmp_path / "out2", source, max_skipped=2))
    assert ledger.skipped == {"record": 2} and len(ledger.examples["record"]) == 2


PREPARES = """
import pickle, sys
from data_pipeline.prepare.run import prepare
if __name__ == "__main__":
    prepare(pickle.load(open(sys.argv[1], "rb")), 2)
"""


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_and_nothing_twice(tmp_path):
    source, draw = texts(tmp_path / "in", 40, 5000), random.Random(1)
    wanted = job(tmp_path / "out", source)
    (tmp_path / "prepares.py").write_text(PREPARES)
    (tmp_path / "job").write_bytes(pickle.dumps(wanted))
    command = [sys.executable, str(tmp_path / "prepares.py"), str(tmp_path / "job")]
    kills = 0
    while read_ledger(wanted.folder) is None:
        process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        try:
            assert process.wait(timeout=draw.uniform(1.4, 2.6) * (1 + kills / 10)) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        assert kills < 60
    assert kills > 1
    assert contents(read_ledger(wanted.folder)) == expected(source)
    assert not list(Path(wanted.folder).glob(".writing-*"))


@pytest.fixture
def pairs(tmp_path):
    """A tar of three pictures of 100 x 80 with captions, as a source."""
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for n in range(3):
            pixels = np.random.default_rng(n).integers(0, 255, (4, 3, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).resize((80, 100), Image.Resampling.BICUBIC).save(file, "PNG")
            for suffix, data in (("png", file.getvalue()), ("txt", TEXTS[n % len(TEXTS)].encode())):
                member = tarfile.TarInfo(f"{n:04}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return dict(kind="tar", splits=dict(train=f"{tmp_path}/pairs.tar"), template="{image:image}{txt}")


def test_media_are_stored_small_or_as_they_are_or_left_where_they_lie(tmp_path, pairs):
    shards = {}
    for mode in job_module.MEDIA_MODES:
        ledger = prepare(job(tmp_path / mode, pairs | dict(media=mode), [image(size=32)]))
        (shards[mode],) = ledger.shards(0, Path("unused"))
        assert (tmp_path / mode / f"{ledger.names[0]}.media").exists() == (mode != "reference")
    originals = [item.data for document in make_reader(Keys(pairs), "train").read(f"{tmp_path}/pairs.tar")
                 for item in document.parts[:1]]  # fmt: skip
    for n in range(3):
        assert shards["original"].media(n).data == shards["reference"].media(n).data == originals[n]
        small, large = (Image.open(io.BytesIO(data)) for data in (shards["inline"].media(n).data, originals[n]))
        assert (small.format, small.size) == ("JPEG", (32, 40))
        resized = np.asarray(large.convert("RGB").resize((32, 40), Image.Resampling.BICUBIC), float)
        assert np.abs(np.asarray(small, float) - resized).mean() < 3
    pixels = {mode: len(shard.sizes) for mode, shard in shards.items()}
    assert pixels == dict.fromkeys(shards, 3)


def test_what_is_killed_while_it_writes_leaves_nothing_that_a_run_would_read(tmp_path, monkeypatch):
    source, calls = texts(tmp_path / "in", 2, 5), []

    def dies(file, folder):
        calls.append(file.name)
        if len(calls) == 2:  # the shard's media (there are none) and its arrays are there, its report is not
            raise KeyboardInterrupt
        return publish(file, folder)

    publish = job_module._publish
    monkeypatch.setattr(job_module, "_publish", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(job(tmp_path / "out", source))
    assert read_ledger(str(tmp_path / "out")) is None
    monkeypatch.setattr(job_module, "_publish", publish)
    assert contents(prepare(job(tmp_path / "out", source))) == expected(source)


def test_jobs_with_a_mistake_say_so():
    with pytest.raises(DataError, match="media is 'inlined', none of inline, reference, original"):
        dataclasses.replace(job("out", dict(kind="jsonl", media="inlined")))
