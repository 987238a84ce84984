"""A model small enough to build in every test."""

import pytest
import torch

from modeling_toto import TotoConfig, TotoForCausalLM

SMALL = {
    "vocab_size": 64 + 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tokens_per_frame": 4,
    "num_frames": 4,
    "max_position_embeddings": 18,
}


@pytest.fixture
def small_config():
    return TotoConfig(**SMALL)


@pytest.fixture
def small_model(small_config):
    torch.manual_seed(0)
    return TotoForCausalLM(small_config).eval()


@pytest.fixture
def rows(small_config):
    """Two full rows: start, 16 codes, end."""
    codes = torch.randint(64, 96, (2, 16), generator=torch.Generator().manual_seed(1))
    start, end = torch.full((2, 1), 1), torch.full((2, 1), 2)
    return torch.cat([start, codes, end], dim=1)
