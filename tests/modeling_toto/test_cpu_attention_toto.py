"""Attention of CPUs: that of torch in float32, as exact as bfloat16 allows."""

import pytest
import torch
from torch.nn import functional as F

import modeling_toto.cpu_attention_toto as cpu_attention
from modeling_toto.cpu_attention_toto import FloatAttention, StripAttention


def attend(function, q, k, v, d_out):
    """The output and the gradients of q, k, v."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, d_out)


def exact(q, k, v, d_out):
    given = (x.double() for x in (q, k, v, d_out))
    return attend(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True, scale=0.2, enable_gqa=True), *given)


@pytest.mark.parametrize("kernel", [StripAttention, FloatAttention])
@pytest.mark.parametrize("length", [1, 31, 32, 100])  # below a strip, one, several and a part
@pytest.mark.parametrize("own", [4, 2])
def test_output_and_gradients(kernel, length, own, monkeypatch):
    if kernel is FloatAttention and own < 4:
        pytest.skip("grouped heads go to torch's own attention")
    monkeypatch.setattr(cpu_attention, "STRIP", 32)
    generator = torch.Generator().manual_seed(length)
    q, d_out = (torch.randn(2, length, 4, 16, generator=generator).bfloat16().transpose(1, 2) for _ in range(2))
    k, v = (torch.randn(2, length, own, 16, generator=generator).bfloat16().transpose(1, 2) for _ in range(2))
    found = attend(lambda *x: kernel.apply(*x, 0.2), q, k, v, d_out)
    for mine, wanted in zip(found, exact(q, k, v, d_out), strict=True):
        assert mine.dtype is torch.bfloat16 and mine.shape == wanted.shape
        assert (mine - wanted).norm() <= 0.01 * wanted.norm() + 1e-6
        assert (mine - wanted).abs().max() < 0.05 * wanted.abs().max() + 1e-6


def test_strips_do_not_matter(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v, d_out = (torch.randn(1, 2, 70, 8, generator=generator).bfloat16() for _ in range(4))
    found = []
    for strip in (16, 70):
        monkeypatch.setattr(cpu_attention, "STRIP", strip)
        found.append(attend(lambda *x: StripAttention.apply(*x, 0.3), q, k, v, d_out))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_no_later_key_is_read():
    q, k, v = (torch.randn(1, 1, 300, 8).bfloat16() for _ in range(3))
    before = StripAttention.apply(q, k, v, 0.3)
    k[:, :, 200:], v[:, :, 200:] = 50, 1e4
    after = StripAttention.apply(q, k, v, 0.3)
    assert torch.equal(before[:, :, :200], after[:, :, :200]) and (after[:, :, 200:].abs() > 100).any()
