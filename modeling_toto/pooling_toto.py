"""Pooling of token features into one vector, shared by the classification heads and the probes."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .block_toto import is_plain
from .configuration_toto import TotoConfig


def normalise(tokens: torch.Tensor) -> torch.Tensor:
    """Layer normalisation without parameters, in float32, applied to any layer before a head: (..., D) -> (..., D)."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


def attention_pool(
    tokens: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """M independent attention poolings over the same tokens, with one query each.

    With a single query, both matrices move out of the sum over tokens: ``q . W_k x = (W_k^T q) . x`` and
    ``sum_n a_n W_v x_n = W_v sum_n a_n x_n``. The result is the same with N D instead of N D^2 multiplications.

    Args:
        tokens: Features, (B, N, D).
        query: (M, d), where d is D or a head's share of it.
        key, value: Matrices W_k and W_v of each pooling, (M, d, D), applied as ``W x``. Without `value`, applying W_v
            is left to the caller, who may standardise the weighted means first.
        mask: True where a token counts, (B, N). None: all count.

    Returns:
        (B, M, d), or (B, M, D) without `value`: ``sum_n softmax_n(q . W_k x_n / sqrt(d)) W_v x_n``.
    """
    direction = torch.einsum("md,mde->me", query, key) / math.sqrt(query.shape[-1])  # (M, D)
    scores = tokens @ direction.T  # (B, N, M)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., None], float("-inf"))
    pooled = scores.softmax(dim=1).transpose(1, 2) @ tokens  # (B, M, D)
    return pooled if value is None else torch.einsum("bme,mde->bmd", pooled, value)


# Queries start near zero, so that training starts close to mean pooling.
QUERY_STD = 0.02


class MeanPooling(nn.Module):
    """Mean of the tokens (paper Sec. 3.5: average pooling, then a linear layer)."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, N, D), mask (B, N) True where a token counts -> (B, D)."""
        if mask is None:
            return tokens.mean(dim=1)
        weights = mask.to(tokens.dtype)[..., None]
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


class AttentionPooling(nn.Module):
    """A learnable query attends to all tokens through learned W_k and W_v (paper Sec. 3.5).

    The paper mentions no output matrix and no number of heads; we use one head as wide as the features.
    """

    num_heads = 1

    def __init__(self, dim: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(dim))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.reset_query()

    def reset_query(self) -> None:
        """Initialise the query, unless it was loaded."""
        init.normal_(self.query, std=QUERY_STD)

    def reset(self, std: float) -> None:
        """Initialise what was not loaded: matrices with `std`, and always with the same draws.

        Therefore a checkpoint or an adapter with a trained classifier but without the pooler (PEFT's
        `modules_to_save=["classifier"]`) finds, when it is loaded, the pooler that it was trained with.
        """
        generator = torch.Generator("cpu").manual_seed(0)  # the same draws on every device
        for name, parameter in self.named_parameters():
            if name == "query" or parameter.ndim > 1:
                drawn = torch.randn(parameter.shape, generator=generator, device="cpu")
                init.copy_(parameter, drawn * (QUERY_STD if name == "query" else std))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, N, D), mask (B, N) True where a token counts -> (B, D)."""
        split = (self.num_heads, -1)
        query = self.query.unflatten(0, split)  # (H, d)
        if is_plain(self.key, tokens.device) and is_plain(self.value, tokens.device):
            key, value = (layer.weight.unflatten(0, split) for layer in (self.key, self.value))  # (H, d, D)
            return attention_pool(tokens, query, key, value, mask).flatten(1)
        keys, values = (layer(tokens).unflatten(-1, split) for layer in (self.key, self.value))  # (B, N, H, d)
        scores = torch.einsum("bnhd,hd->bnh", keys, query.to(keys.dtype)) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], float("-inf"))
        return torch.einsum("bnh,bnhd->bhd", scores.softmax(dim=1), values).flatten(1)


class CrossAttentionPooling(AttentionPooling):
    """A learnable query attends to all tokens with several heads, followed by an MLP (paper Table 17's larger head).

    The paper is silent on its depth. We follow the attentive pooler of V-JEPA 2 without its self-attention blocks:
    cross-attention and an MLP of four times the width, both with residual connections. Left out is what a single query
    and normalised tokens make redundant: a matrix on the query, a bias of the keys, a norm of the tokens.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim)
        self.num_heads = num_heads
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, N, D), mask (B, N) True where a token counts -> (B, D)."""
        pooled = self.query + self.output(super().forward(tokens, mask))
        return pooled + self.contract(F.gelu(self.expand(self.norm(pooled))))


def make_pooler(config: TotoConfig) -> nn.Module:
    """The pooling module named by `config.pooler`: tokens (B, N, D), mask (B, N) -> (B, D)."""
    if config.pooler == "mean":
        return MeanPooling()
    if config.pooler == "attention":
        return AttentionPooling(config.hidden_size)
    return CrossAttentionPooling(config.hidden_size, config.num_attention_heads)


__all__ = ["AttentionPooling", "CrossAttentionPooling", "MeanPooling", "attention_pool", "make_pooler", "normalise"]
