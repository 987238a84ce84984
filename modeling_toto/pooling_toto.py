"""Turn the features of many tokens into one vector: the poolings that heads and probes share."""

import math

import torch
from torch import nn


def attention_pool(
    tokens: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """M independent attention poolings over the same tokens, each with one query.

    Args:
        tokens: features, (B, N, D).
        query: (M, D).
        key, value: the matrices W_k and W_v of each pooling, (M, D, D), applied as ``W x``. Without `value`, W_v is
            left to the caller (who may standardise the weighted means first).
        mask: True where a token counts, (B, N). None: all count.

    Returns:
        (B, M, D): ``sum_n softmax_n(q . W_k x_n / sqrt(D)) W_v x_n``.

    One query lets both matrices move out of the sum over tokens, ``q . W_k x = (W_k^T q) . x`` and
    ``sum_n a_n W_v x_n = W_v sum_n a_n x_n``: the same numbers for N D instead of N D^2 multiplications.
    """
    direction = torch.einsum("md,mde->me", query, key) / math.sqrt(tokens.shape[-1])  # (M, D)
    scores = tokens @ direction.T  # (B, N, M)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., None], float("-inf"))
    pooled = scores.softmax(dim=1).transpose(1, 2) @ tokens  # (B, M, D)
    return pooled if value is None else torch.einsum("bme,mde->bmd", pooled, value)


class MeanPooling(nn.Module):
    """The average of the tokens (paper Sec. 3.5: average pooling, then a linear layer)."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, N, D), mask (B, N) True where a token counts -> (B, D)."""
        if mask is None:
            return tokens.mean(dim=1)
        weights = mask.to(tokens.dtype)[..., None]
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


class AttentionPooling(nn.Module):
    """One learnable query attends to all tokens through learned W_k and W_v (paper Sec. 3.5).

    The paper names no output matrix and no number of heads; we use one head of the feature's own width.
    The query starts near zero, so that training starts from mean pooling.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(dim))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.query, std=0.02)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, N, D), mask (B, N) True where a token counts -> (B, D)."""
        pooled = attention_pool(tokens, self.query[None], self.key.weight[None], self.value.weight[None], mask)
        return pooled[:, 0]
