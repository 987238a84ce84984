"""AdamW with decay on matrices only, and the paper's schedule: linear warm-up, then cosine."""

import math

import torch
from torch import nn

from .args import OptimArgs


def make_optimizer(model: nn.Module, args: OptimArgs) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), fused=True
    )


def learning_rate(step: int, max_steps: int, args: OptimArgs) -> float:
    """The rate of optimiser step `step` (from 0) of `max_steps`."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    progress = (step - args.warmup_steps) / max(1, max_steps - args.warmup_steps)
    low = args.learning_rate * args.min_lr_ratio
    return low + (args.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate is a function of the step, so that a resumed run needs no scheduler state."""
    for group in optimizer.param_groups:
        group["lr"] = rate
