"""Apache Beam on this machine; `make test-beam`, since it does not go together with what the other tests need."""

from pathlib import Path

import pytest

from data_pipeline.prepare.ledger import read_ledger
from data_pipeline.prepare.run import prepare
from tests.data_pipeline.prepare.test_run import job, texts


def test_beam_s_pipeline_writes_the_same_bytes(tmp_path):
    pytest.importorskip("apache_beam")
    from data_pipeline.prepare.beam import prepare_with_beam

    source = texts(tmp_path / "in", 3, 20)
    by_pool, by_beam = (job(tmp_path / name, source) for name in ("pool", "beam"))
    prepare(by_pool)
    prepare_with_beam(by_beam)
    files = [{f.name: f.read_bytes() for f in Path(j.folder).glob("*.safetensors")} for j in (by_pool, by_beam)]
    assert files[0] == files[1] and len(files[0]) == 3
    assert prepare_with_beam(by_beam) == read_ledger(by_beam.folder)
