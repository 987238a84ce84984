"""Causal attention for training on a CPU from bfloat16 inputs: in float32 or in strips, whichever is faster there."""

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

# Queries at a time. Their scores against all keys, and the two matrices of the backward pass that are as large, should
# stay in the cache; fewer queries make the products slower. 128 to 512 differ by less than a tenth.
STRIP = 256


class FloatAttention(torch.autograd.Function):
    """torch's kernel in float32, for CPUs on which that is faster: (B, H, T, d) each, of which bfloat16 is saved."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        with torch.autocast("cpu", enabled=False):
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q.float(), k.float(), v.float(), 0.0, True, scale=scale
            )
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        q, k, v, out, lse = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(t.float() for t in (d_out, q, k, v, out)), lse, 0.0, True, scale=ctx.scale
            )
        return *(grad.to(q.dtype) for grad in grads), None


class StripAttention(torch.autograd.Function):
    """Attention of `STRIP` queries at a time to all earlier keys, as products of whole matrices.

    For CPUs whose bfloat16 products are fast: torch's kernel reaches a third of their speed. Scores and probabilities
    are bfloat16, as in eager attention under autocast, softmax computes in float32, and gradients of keys and values
    are summed in float32. The backward pass repeats the scores, so only q, k and v (B, H, T, d) are saved; k and v may
    have fewer heads.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        out = torch.empty_like(q)
        with torch.autocast("cpu", enabled=False):
            strips = _Strips(q, v, matrices=2)
            for row, head, own in _heads(q, k):
                query, key, value = q[row, head] * scale, k[row, own].T, v[row, own].contiguous()
                for rows, (scores, weights) in strips:
                    strips.softmax(query, key, rows, scores, weights)
                    out[row, head, rows] = torch.mm(weights, value[: rows.stop], out=strips.narrow[: len(weights)])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        q, k, v = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        with torch.autocast("cpu", enabled=False):
            strips = _Strips(q, v, matrices=3)
            sums = q.new_empty(2, *k.shape[2:], dtype=torch.float32)
            for row, head, own in _heads(q, k):
                query, key, value = q[row, head] * ctx.scale, k[row, own].contiguous(), v[row, own].contiguous()
                given = d_out[row, head].contiguous()
                if head % (q.shape[1] // k.shape[1]) == 0:
                    sums.zero_()
                for rows, (scores, weights, d_weights) in strips:
                    strips.softmax(query, key.T, rows, scores, weights)
                    torch.mm(given[rows], value[: rows.stop].T, out=d_weights)
                    torch._softmax_backward_data(d_weights, weights, -1, q.dtype, grad_input=scores)
                    part = strips.narrow[: rows.stop]
                    sums[0, : rows.stop] += torch.mm(scores.T, query[rows], out=part)
                    sums[1, : rows.stop] += torch.mm(weights.T, given[rows], out=part)
                    d_q[row, head, rows] = torch.mm(scores, key[: rows.stop], out=part[: len(scores)]).mul_(ctx.scale)
                d_k[row, own], d_v[row, own] = sums
        return d_q, d_k, d_v, None


def _heads(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """(row of the batch, query head, its key head)"""
    group = q.shape[1] // k.shape[1]
    return ((row, head, head // group) for row in range(len(q)) for head in range(q.shape[1]))


class _Strips:
    """Memory that all strips of a call share, since new memory costs as much as filling it.

    Iterating gives (rows, matrices): a slice of queries, and `matrices` empty ones of (rows, keys up to the last row).
    """

    def __init__(self, q: torch.Tensor, v: torch.Tensor, matrices: int):
        self.length = q.shape[2]
        step = min(STRIP, self.length)
        self.wide = q.new_empty(matrices, step * self.length)
        self.narrow = q.new_empty(self.length, v.shape[3])
        self.later = torch.ones(step, step, dtype=torch.bool).triu_(1)

    def __iter__(self):
        for start in range(0, self.length, STRIP):
            rows = slice(start, min(self.length, start + STRIP))
            shape = rows.stop - start, rows.stop
            yield rows, [matrix[: shape[0] * shape[1]].view(shape) for matrix in self.wide]

    def softmax(self, query, key, rows: slice, scores, weights) -> None:
        """Write the strip's scores and their softmax; query (T, d) is scaled, key (d, T)."""
        torch.mm(query[rows], key[:, : rows.stop], out=scores)
        count = len(scores)
        scores[:, rows.start :].masked_fill_(self.later[:count, :count], float("-inf"))
        torch._softmax(scores, -1, False, out=weights)
