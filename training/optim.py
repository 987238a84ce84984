"""AdamW with decay on matrices only, and the paper's schedule: linear warm-up, then cosine; muP's rates per group."""

import math

import torch
from torch import nn

from modeling_toto import TotoPreTrainedModel
from modeling_toto.mup import learning_rate_scales

from .args import OptimArgs


def make_optimizer(model: nn.Module, args: OptimArgs) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are not decayed.

    A group's `lr_scale` multiplies the schedule (`set_learning_rate`) and divides its decay, so that one step decays
    all matrices alike. It is 1 but for the blocks of a Toto with muP (see modeling_toto/mup.py).
    """
    scales = learning_rate_scales(model) if isinstance(model, TotoPreTrainedModel) else {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in sorted(parameters, key=lambda p: p.ndim < 2):  # a stable sort: matrices, then vectors
        groups.setdefault((parameter.ndim >= 2, scales.get(parameter, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "lr": args.learning_rate * scale, "lr_scale": scale}
            | {"weight_decay": args.weight_decay / scale if decayed else 0.0}
            for (decayed, scale), members in groups.items()
        ],
        betas=(args.adam_beta1, args.adam_beta2),
        fused=True,
    )


def learning_rate(step: int, max_steps: int, args: OptimArgs) -> float:
    """The rate of optimiser step `step` (from 0) of `max_steps`."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    progress = (step - args.warmup_steps) / max(1, max_steps - args.warmup_steps)
    low = args.learning_rate * args.min_lr_ratio
    return low + (args.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate is a function of the step, so that a resumed run needs no scheduler state; each group scales it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
