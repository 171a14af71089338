"""Corpora and what is prepared of them in buckets, gs:// and s3://, against servers that speak their protocols."""

import dataclasses
import json
import urllib.request

import fsspec
import numpy as np
import pytest

from data_pipeline.mixture import Mixture
from data_pipeline.prepare.ledger import read_ledger
from data_pipeline.prepare.run import prepare
from data_pipeline.prepare.sources import make_job
from tests.data_pipeline.demo_data import demo_config, equal
from tests.storage_fake import Storage, environment, served


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
    """An address of a bucket that is there for this file of tests."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "gs":
            pytest.importorskip("gcsfs")
            with served(Storage("corpora")) as address:
                for name, value in environment(address).items():
                    patch.setenv(name, value)
                patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
                fsspec.get_filesystem_class("gs").clear_instance_cache()
                yield "gs://corpora"
            return
        pytest.importorskip("s3fs")
        server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
        server.start()
        host, port = server.get_host_and_port()
        settings = dict(AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x")
        for name, value in (settings | dict(AWS_DEFAULT_REGION="us-east-1")).items():
            patch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/corpora", method="PUT"))
        yield "s3://corpora"
        server.stop()


def test_a_corpus_in_a_bucket_is_prepared_into_it_and_its_batches_are_those_of_a_disk(bucket, tokenizer, tmp_path):
    lines = "".join(json.dumps({"text": f"The digit is {i}. It stays {i}."}) + "\n" for i in range(400))
    for n in range(3):
        (tmp_path / f"{n}.jsonl").write_text(lines.replace("stays", f"stays {n} times"))
        with fsspec.open(f"{bucket}/in/{n}.jsonl", "wb") as file:
            file.write((tmp_path / f"{n}.jsonl").read_bytes())

    def mixture(place, cache):
        config = demo_config(data__batch_rows=2)
        source = dict(kind="jsonl", splits=dict(train=f"{place}/*.jsonl"), share=1.0, per_row=dict(image=0))
        folder = f"{place.removesuffix('/in')}/prepared"
        config.data.sources = dict(text=source | dict(prepared=folder))
        job = make_job(config, "text", "train", tokenizer, cache)
        prepare(job)
        assert read_ledger(job.folder).documents == [400] * 3
        assert prepare(job) == read_ledger(job.folder)  # nothing is done twice
        return Mixture(config, tokenizer, "train", cache)

    there, here = mixture(f"{bucket}/in", tmp_path / "a"), mixture(str(tmp_path), tmp_path / "b")
    for step in (0, 7):
        assert equal(there.batch(step)[0], here.batch(step)[0])
    names = there.members[0].plan.shards(0)[0][0].name(3)
    assert names == f"{bucket}/in/0.jsonl:4"


def test_pictures_in_a_bucket_are_stored_and_copied_with_their_shard(bucket, tokenizer, tmp_path):
    config = demo_config(data__batch_rows=4)
    config.data.sources = dict(captions=config.data.sources.captions)
    config.data.sources.captions.prepared = f"{bucket}/digits"
    job = make_job(config, "captions", "validation", tokenizer, tmp_path)
    prepare(job)
    arrays, stats = Mixture(config, tokenizer, "validation", tmp_path / "copies").batch(0)
    assert stats["skipped"] == [] and arrays["media"]["image"].any()
    local = dataclasses.replace(job, folder=str(tmp_path / "local/validation"))
    prepare(local)
    config.data.sources.captions.prepared = str(tmp_path / "local")
    np.testing.assert_array_equal(
        arrays["tokens"], Mixture(config, tokenizer, "validation", tmp_path / "other").batch(0)[0]["tokens"]
    )
