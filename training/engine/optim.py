"""AdamW with decay on matrices only, linear warm-up then cosine (paper Sec. 3.2), and a moving average of weights."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from modeling_toto import TotoPreTrainedModel
from modeling_toto.mup import learning_rate_scales
from training.args import OptimArgs


def make_optimizer(
    model: nn.Module, args: OptimArgs, factors: dict[nn.Parameter, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are not decayed.

    A group's `lr_scale` multiplies the schedule (`set_learning_rate`). It is the product of the scale of muP
    (modeling_toto/mup.py), 1 without muP, and the parameter's factor in `factors` (`layer_factors`), 1 by default.
    The scale of muP also divides the decay, so that a step decays all matrices equally; the factors do not.
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
    """Factors of the learning rate that decrease with the distance from the head.

    They are 1 for the head, decay^(depth + 1 - k) for block k = 1..depth, and decay^(depth + 1) for the embeddings
    (paper silent; we follow BEiT and MAE).

    Args:
        depth: number of blocks below the head.
        decay: 1 gives all layers the same rate.
    """
    factors = dict.fromkeys(model.get_input_embeddings().parameters(), decay ** (depth + 1))
    for k, layer in enumerate(model.base_model.layers[:depth], start=1):
        factors |= dict.fromkeys(layer.parameters(), decay ** (depth + 1 - k))
    return factors


def learning_rate(step: int, max_steps: int, args: OptimArgs) -> float:
    """The learning rate of optimiser step `step` (from 0) of `max_steps`."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    progress = (step - args.warmup_steps) / max(1, max_steps - args.warmup_steps)
    low = args.learning_rate * args.min_lr_ratio
    return low + (args.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, times its `lr_scale`. A function of the step needs no scheduler state to resume."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class Average:
    """The exponential moving average of a model's trainable weights, on the same device (and shard) as the weights.

    The update is torch's. `torch.optim.swa_utils.AveragedModel` itself copies the module, which FSDP2 does not allow.

    Args:
        decay: per step; it starts at (1 + step) / (10 + step), so that the initial weights have little influence.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.names, self.weights = list(trained), list(trained.values())
        self.averages = [weight.detach().clone() for weight in self.weights]

    def update(self, step: int) -> None:
        """Update the averages after optimiser step `step` (from 1)."""
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        update(self.averages, [weight.detach() for weight in self.weights], step)

    def put_aside(self) -> dict[str, torch.Tensor]:
        """The averages by name, or, inside `applied()`, the weights themselves."""
        return dict(zip(self.names, self.averages, strict=True))

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self.averages, self.weights, strict=True):
            before = weight.detach().clone()
            weight.copy_(average)
            average.copy_(before)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the averages are the model's weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()
