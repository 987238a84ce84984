"""AdamW or Muon with decay on matrices only, linear warm-up then cosine (paper Sec. 3.2), and an average of weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from modeling_toto import TotoConfig, TotoPreTrainedModel
from modeling_toto.mup import hidden_matrices, learning_rate_scales
from training.args import OptimArgs, PretrainOptimArgs
from training.flags import require


def make_optimizer(
    model: nn.Module, args: OptimArgs, factors: dict[nn.Parameter, float] | None = None
) -> torch.optim.AdamW | MuonAndAdamW:
    """AdamW over the trainable parameters, or MuonAndAdamW; vectors (norms, biases) are not decayed.

    A group's `lr_scale` multiplies the schedule (`set_learning_rate`). It is the product of the scale of muP
    (modeling_toto/mup.py), 1 without muP, and the parameter's factor in `factors` (`layer_factors`), 1 by default.
    The scale of muP also divides the decay, so that a step decays all matrices equally; the factors do not. With Muon,
    the factor of its matrices is the ratio of the two peak rates.
    """
    muon: dict[nn.Parameter, float] = {}
    if isinstance(args, PretrainOptimArgs) and args.optimizer == "muon":
        muon = dict.fromkeys(hidden_matrices(model), args.muon_learning_rate / args.learning_rate)
    scales = learning_rate_scales(model) if isinstance(model, TotoPreTrainedModel) else {}
    factors = (factors or {}) | muon
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: dict[tuple[bool, bool, float, float], list[nn.Parameter]] = {}
    for parameter in sorted(parameters, key=lambda p: p.ndim < 2):  # a stable sort: matrices, then vectors
        scale, factor = scales.get(parameter, 1.0), factors.get(parameter, 1.0)
        groups.setdefault((parameter in muon, parameter.ndim >= 2, scale, factor), []).append(parameter)
    parts: dict[bool, list[dict]] = {True: [], False: []}
    for (by_muon, decayed, scale, factor), members in groups.items():
        settings = {"params": members, "lr": args.learning_rate * scale * factor, "lr_scale": scale * factor}
        parts[by_muon].append(settings | {"weight_decay": args.weight_decay / scale if decayed else 0.0})
    betas = (args.adam_beta1, args.adam_beta2)
    if muon:
        return MuonAndAdamW(parts[True], parts[False], betas)
    return torch.optim.AdamW(parts[False], betas=betas, fused=True)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the blocks and AdamW for all other weights, as one optimiser (not in the paper).

    Both are torch's. Muon is as first published (https://kellerjordan.github.io/posts/muon): momentum 0.95 with
    Nesterov's look-ahead, and a step of lr * sqrt(max(1, rows / columns)) times the orthogonalised momentum. In both, a
    step also subtracts lr * weight_decay * weight, which is more in Muon, whose rate is higher.

    Args:
        matrices, others: groups of parameters, of Muon and of AdamW.
        betas: of AdamW.
    """

    def __init__(self, matrices: list[dict], others: list[dict], betas: tuple[float, float]):
        self.muon = torch.optim.Muon(matrices, momentum=0.95, nesterov=True, adjust_lr_fn="original")
        self.adamw = torch.optim.AdamW(others, betas=betas, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None if closure is None else torch.enable_grad()(closure)()
        # Shared at every step, since loading a state replaces the groups and the state.
        for part in (self.muon, self.adamw):
            part.param_groups = [group for group in self.param_groups if is_muon(group) == (part is self.muon)]
            part.state = self.state
            part.step()
        return loss


def is_muon(group: dict) -> bool:
    """Whether a group of an optimiser is Muon's, whose only moment is "momentum_buffer"; all others are AdamW's."""
    return "momentum" in group


def require_muon_fits(architecture: str, config: TotoConfig, is_sharded: bool) -> None:
    """Check that Muon can train a model; needs no model, so that a run can be refused before it starts.

    Args:
        architecture: of `ARCHITECTURES`.
        config: of the Toto to train.
        is_sharded: FSDP shards the weights.
    Raises:
        ValueError: it cannot.
    """
    otherwise = "use --optimizer adamw"
    require(
        hasattr(torch.optim, "Muon"),
        f"--optimizer muon needs torch 2.9 or later, but this is torch {torch.__version__}; update it, or {otherwise}.",
    )
    require(
        architecture in ("llama", "patches"),
        f"--optimizer muon is for the blocks of a Toto, but --architecture is {architecture}; {otherwise}.",
    )
    require(
        config.mup_base_width is None,
        f"--optimizer muon has no rule for muP, but the model has mup_base_width {config.mup_base_width}; {otherwise}.",
    )
    require(
        not is_sharded,
        f"--optimizer muon needs whole matrices, but FSDP shards them; train with DDP, or {otherwise}.",
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
