import pytest

from data_pipeline.pipeline import make_tokenizer
from tests.data_pipeline.demo_data import demo_config


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tokenizer(cache):
    return make_tokenizer(demo_config(), cache)
