import pytest

from compress.backends.opening import open_artifact
from compress.models.checkpoint import load_tokenizer
from tests.meters.tiny_llama import write_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("models") / "llama", seed=0)


@pytest.fixture(scope="session")
def tokenizer(llama):
    return load_tokenizer(llama.path)


@pytest.fixture(scope="session")
def backend(llama):
    return open_artifact(llama)
