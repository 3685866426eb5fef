"""The two tokenizers, made once, and what the engine gives a source or a step."""

import pytest

from compress.data import tokenizer
from compress.digests import DigestMemo
from compress.records import Artifact
from tests.fakes import FakeContext


@pytest.fixture
def context(tmp_path) -> FakeContext:
    return FakeContext(tmp_path / "out")


@pytest.fixture
def memo(tmp_path_factory) -> DigestMemo:
    return DigestMemo(tmp_path_factory.mktemp("memo") / "digests.sqlite")


@pytest.fixture(scope="session")
def demo_tokenizer(tmp_path_factory) -> Artifact:
    return _tokenizer(tmp_path_factory.mktemp("made"), "demo")


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory) -> Artifact:
    return _tokenizer(tmp_path_factory.mktemp("made"), "bytes")


def _tokenizer(folder, kind) -> Artifact:
    tokenizer.run(None, tokenizer.Config(kind=kind), FakeContext(folder / kind))
    return Artifact(key=kind, kind="tokenizer", path=folder / kind)
