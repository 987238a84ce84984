"""Poolings equal their written-out definitions, ignore masked tokens, and keep what was loaded."""

import pytest
import torch
from torch.nn import functional as F

from modeling_toto.pooling_toto import AttentionPooling, CrossAttentionPooling, MeanPooling, attention_pool, normalise

TOKENS = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(7) < torch.tensor([[7], [3], [1]])
POOLERS = {"mean": MeanPooling, "attention": lambda: AttentionPooling(8), "mlp": lambda: CrossAttentionPooling(8, 2)}


@pytest.fixture(params=POOLERS)
def pooler(request):
    torch.manual_seed(1)
    pooler = POOLERS[request.param]()
    for weight in pooler.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return pooler


def test_masked_tokens_do_not_count(pooler):
    pooled = pooler(TOKENS, MASK)
    assert pooled.shape == (3, 8)
    for row, count in enumerate((7, 3, 1)):
        torch.testing.assert_close(pooled[row], pooler(TOKENS[row : row + 1, :count])[0])
    noise = torch.where(MASK[..., None], TOKENS, torch.randn(TOKENS.shape))
    torch.testing.assert_close(pooler(noise, MASK), pooled)


def test_order_does_not_count(pooler):
    torch.testing.assert_close(pooler(TOKENS.flip(1)), pooler(TOKENS))


def test_gradients_reach_every_parameter_and_counted_token(pooler):
    tokens = TOKENS.clone().requires_grad_()
    (pooler(tokens, MASK) * torch.randn(3, 8)).sum().backward()
    for name, weight in pooler.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    assert torch.equal(tokens.grad.abs().sum(-1) > 0, MASK)


def test_attention_pool_is_the_written_out_sum():
    query, key, value = torch.randn(2, 4), torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    expected = torch.empty(3, 2, 4)
    for row in range(3):
        for m in range(2):
            seen = TOKENS[row, MASK[row]]  # (n, D)
            weights = (seen @ key[m].T @ query[m] / 4**0.5).softmax(0)
            expected[row, m] = weights @ (seen @ value[m].T)
    torch.testing.assert_close(attention_pool(TOKENS, query, key, value, MASK), expected)
    means = attention_pool(TOKENS, query, key, mask=MASK)
    torch.testing.assert_close(torch.einsum("bme,mde->bmd", means, value), expected)


def test_cross_attention_pooling_is_a_block_of_ordinary_parts():
    pooler = CrossAttentionPooling(8, 2)
    torch.nn.init.normal_(pooler.query)
    reference = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([torch.eye(8), pooler.key.weight, pooler.value.weight]))
        reference.out_proj.weight.copy_(pooler.output.weight)
        query = pooler.query.expand(3, 1, 8)
        seen = query + reference(query, TOKENS, TOKENS, key_padding_mask=~MASK)[0] + pooler.output.bias
        hidden = F.gelu(pooler.expand(F.layer_norm(seen, (8,), pooler.norm.weight, pooler.norm.bias)))
        expected = seen + pooler.contract(hidden)
        torch.testing.assert_close(pooler(TOKENS, MASK), expected[:, 0])


def test_fresh_queries_are_near_zero_and_loaded_ones_stay():
    pooler = AttentionPooling(4096)
    assert pooler.query.std().item() == pytest.approx(0.02, rel=0.1)
    before = pooler.query.clone()
    pooler.query._is_hf_initialized = True  # as transformers marks what a checkpoint held
    pooler.reset_query()
    assert torch.equal(pooler.query, before)
    del pooler.query._is_hf_initialized
    pooler.reset_query()
    assert not torch.equal(pooler.query, before)


def test_normalise():
    tokens = normalise(TOKENS.bfloat16() * 100 + 3)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(3, 7), atol=1e-4, rtol=0)
