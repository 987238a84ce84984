"""Fixtures of the training tests."""

import pytest
from tiny_run import save_tokenizer, tokenize


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    return tokenize(root / "train", save_tokenizer(root / "tokenizer"))
