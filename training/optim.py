"""AdamW with decay on matrices only, and the paper's schedule: linear warm-up, then cosine; muP's rates per group."""

import math

import torch
from torch import nn

from modeling_toto import TotoPreTrainedModel
from modeling_toto.mup import learning_rate_scales

from .args import OptimArgs


def make_optimizer(
    model: nn.Module, args: OptimArgs, factors: dict[nn.Parameter, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are not decayed.

    A group's `lr_scale` multiplies the schedule (`set_learning_rate`). It is 1 but for the blocks of a Toto with muP
    (see modeling_toto/mup.py), where it also divides the decay, so that one step decays all matrices alike, and for
    what has one of the `factors` (`layer_factors`), which leave the decay as it is.
    """
    scales = learning_rate_scales(model) if isinstance(model, TotoPreTrainedModel) else {}
    factors = factors or {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in sorted(parameters, key=lambda p: p.ndim < 2):  # a stable sort: matrices, then vectors
        key = (parameter.ndim >= 2, scales.get(parameter, 1.0), factors.get(parameter, 1.0))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "lr": args.learning_rate * scale * factor, "lr_scale": scale * factor}
            | {"weight_decay": args.weight_decay / scale if decayed else 0.0}
            for (decayed, scale, factor), members in groups.items()
        ],
        betas=(args.adam_beta1, args.adam_beta2),
        fused=True,
    )


def layer_factors(model: TotoPreTrainedModel, depth: int, decay: float) -> dict[nn.Parameter, float]:
    """Factors of the learning rate that fall with the distance from the head: 1 of the head, decay^(depth + 1 - k) of
    block k = 1..depth, decay^(depth + 1) of the embeddings (paper silent; we follow BEiT and MAE).

    Args:
        depth: blocks that the head reads through. decay: 1 is one rate for all.
    """
    factors = dict.fromkeys(model.get_input_embeddings().parameters(), decay ** (depth + 1))
    for k, layer in enumerate(model.base_model.layers[:depth], start=1):
        factors |= dict.fromkeys(layer.parameters(), decay ** (depth + 1 - k))
    return factors


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
