"""Next-token cross-entropy from hidden states, computed without holding the logits of a whole row."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .block_toto import add_outer, is_plain, kept_dtype, product_dtype

# Number of logits held at once. On a CPU 16 MB in float32, which fit in its cache; elsewhere 128 MB, so that a product
# of 4,064 positions with the paper's vocabulary fills a GPU.
CHUNK_ELEMENTS = 2**22
DEVICE_CHUNK_ELEMENTS = 2**25


def chunk_rows(weight: torch.Tensor) -> int:
    """Positions whose logits are held at once, for a head with this weight (V, D)."""
    elements = CHUNK_ELEMENTS if weight.device.type == "cpu" else DEVICE_CHUNK_ELEMENTS
    return max(1, elements // weight.shape[0])


class _LinearCrossEntropy(torch.autograd.Function):
    """(states, weight, targets) -> (sum of the losses, losses), with the gradients computed in the forward pass.

    When the loss of a chunk is computed its logits are available, and so is the gradient of the sum; computing it then
    saves the product that would recompute the logits. If the losses of positions are used individually, the backward
    pass computes the gradients again with a weight for each position.
    """

    @staticmethod
    def forward(ctx, states, weight, targets, ignore_index):
        ctx.set_materialize_grads(False)
        ctx.ignore_index = ignore_index
        ctx.dtype = product_dtype(kept_dtype(states), states.device)
        losses, grads = _passes(states, weight, targets, ctx.dtype, ignore_index, None, ctx.needs_input_grad[:2])
        ctx.save_for_backward(states, weight, targets, *(g for g in grads if g is not None))
        ctx.kept = [g is not None for g in grads]
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, of_sum, of_losses):
        states, weight, targets, *kept = ctx.saved_tensors
        if of_losses is None:
            if of_sum is None:
                return None, None, None, None
            grads = [kept.pop(0) * of_sum if has else None for has in ctx.kept]
        else:
            factor = of_losses if of_sum is None else of_losses + of_sum
            _, grads = _passes(states, weight, targets, ctx.dtype, ctx.ignore_index, factor, ctx.needs_input_grad[:2])
        grads = [g if g is None else g.to(given.dtype) for g, given in zip(grads, (states, weight), strict=True)]
        return *grads, None, None


def _passes(states, weight, targets, dtype, ignore_index, factor, needed):
    """Losses (N,) and the gradients of their sum, weighted by `factor` (N,) if given, for the inputs that are `needed`.

    Products of states (N, D) and weight (V, D) are computed in `dtype`; losses and sums are float32.
    """
    with torch.autocast(states.device.type, enabled=False):
        states, weight = states.to(dtype), weight.to(dtype)
        rows = chunk_rows(weight)
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        d_states = torch.empty_like(states) if needed[0] else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needed[1] else None
        for start in range(0, len(states), rows):
            chunk = slice(start, start + rows)
            ignored = targets[chunk] == ignore_index
            wanted = targets[chunk].masked_fill(ignored, 0)[:, None]
            log_p = F.log_softmax(F.linear(states[chunk], weight), dim=-1, dtype=torch.float32)
            losses[chunk] = -log_p.gather(1, wanted)[:, 0].masked_fill(ignored, 0.0)
            if not any(needed):
                continue
            d_logits = log_p.exp_()  # softmax minus one-hot
            d_logits.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
            weights = (~ignored).float() if factor is None else factor[chunk].masked_fill(ignored, 0.0)
            # elsewhere than on a CPU, asking the device costs more than the product
            if factor is not None or states.device.type != "cpu" or ignored.any():
                d_logits *= weights[:, None]
            d_logits = d_logits.to(dtype)
            if needed[0]:
                torch.mm(d_logits, weight, out=d_states[chunk])
            if needed[1]:
                add_outer(d_weight, d_logits, states[chunk])
    return losses, (d_states, d_weight)


def token_cross_entropy(
    states: torch.Tensor, targets: torch.Tensor, head: nn.Module, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of `head(states)` against `targets`, without holding all logits.

    states (N, D), targets (N,) -> the sum () and float32 nats (N,), 0 where the target is `ignore_index`. Both are
    differentiable; use the sum to train, because its gradient is already computed.
    """
    if is_plain(head, states.device) and head.bias is None and not torch.compiler.is_compiling():
        return _LinearCrossEntropy.apply(states, head.weight, targets, ignore_index)

    # Any other head (with an adapter, or a sharded or offloaded weight) is called as a module; backward recomputes its
    # logits.
    def chunk_loss(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(rows).float(), wanted, reduction="none", ignore_index=ignore_index)

    losses = []
    rows_per_chunk = chunk_rows(head.weight)
    for rows, wanted in zip(states.split(rows_per_chunk), targets.split(rows_per_chunk), strict=True):
        if torch.is_grad_enabled():
            losses.append(checkpoint(chunk_loss, rows, wanted, use_reentrant=False, preserve_rng_state=False))
        else:
            losses.append(chunk_loss(rows, wanted))
    losses = torch.cat(losses)
    return losses.sum(), losses


def next_token_losses(
    states: torch.Tensor, labels: torch.LongTensor, head: nn.Module | None
) -> tuple[torch.FloatTensor, torch.FloatTensor]:
    """Losses of predicting labels[:, t] from states[:, t - 1]: their sum () and float32 nats (B, L), 0 at t = 0.

    states is (B, L, D), or logits (B, L, V) if head is None; labels is (B, L), not shifted, -100 where nothing is
    predicted.
    """
    # as in transformers, the labels are shifted, not the states, because a slice of the states would be copied
    targets = F.pad(labels[:, 1:], (0, 1), value=-100).to(states.device)
    if head is None:
        losses = F.cross_entropy(states.flatten(0, 1).float(), targets.flatten(), reduction="none")
        total = losses.sum()
    else:
        total, losses = token_cross_entropy(states.flatten(0, 1), targets.flatten(), head)
    return total, F.pad(losses.view(labels.shape)[:, :-1], (1, 0))


__all__ = ["next_token_losses", "token_cross_entropy"]
