"""How well the action can be read from each layer: R^2 on held-out episodes, in closed form, before any rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evaluation.heads.closed_form import RIDGE_PENALTIES, ridge_weights
from evaluation.heads.selection import train_moments
from tokenization.terminal.progress import tqdm
from training.results import Record


@dataclass(frozen=True, kw_only=True)
class LayerFit(Record):
    """Ridge regression of the action on a layer's features and the state.

    Fields:
        layer: None for the state alone, the floor.
        r2: mean of `r2_by_action`; None if no action number varies.
        r2_by_action: of each number of the action, on the held-out episodes; None for one that is constant there.
        penalty: per observation and on standardised inputs, chosen on training episodes.
    """

    layer: int | None
    r2: float | None
    r2_by_action: list[float | None]
    penalty: float


def layer_curve(
    features: dict[int, Sequence[torch.Tensor]],
    states: Sequence[torch.Tensor],
    actions: Sequence[torch.Tensor],
    held_out: int,
    progress: bool = True,
) -> list[LayerFit]:
    """The fit of the state alone, then of every layer with the state.

    The penalty is the best on the last fifth of the training episodes; with it, all of them are fitted again, and the
    last `held_out` episodes are scored. Paper silent; ours.

    Args:
        features: {layer: (T, size) of each episode}. states, actions: (T, P) and (T, A) of each episode.
        held_out: episodes at the end that are not fitted.
    Raises:
        ValueError: fewer than two training episodes, or features that are not finite.
    """
    count = len(actions) - held_out
    if count < 2:
        raise ValueError(f"There are {count} training episodes, of which one chooses the penalty; record at least 2.")
    inner = count - tail(count)
    ends = (slice(0, inner), slice(inner, count), slice(0, count), slice(count, None))
    targets = [torch.cat(list(actions[part])) for part in ends]
    fits = []
    for layer in tqdm([None, *features], desc="layers", unit="layer", disable=not progress):
        seen = states if layer is None else [torch.cat(pair, 1) for pair in zip(features[layer], states, strict=True)]
        inputs = [torch.cat(list(seen[part])).float() for part in ends]
        tried = predicted(inputs[0], targets[0], inputs[1], RIDGE_PENALTIES)
        errors = ((tried - targets[1][:, None]) / spread(targets[0])).square().mean((0, 2))
        penalty = RIDGE_PENALTIES[int(errors.argmin())]
        scores = r2_by_number(predicted(inputs[2], targets[2], inputs[3], [penalty])[:, 0], targets[3])
        known = [score for score in scores if score is not None]
        mean = sum(known) / len(known) if known else None
        fits.append(LayerFit(layer=layer, r2=mean, r2_by_action=scores, penalty=penalty))
    return fits


def best_layer(curve: Sequence[LayerFit]) -> int:
    """The layer of the highest R^2; of equals the first.

    Raises:
        ValueError: none has one.
    """
    scored = [fit for fit in curve if fit.layer is not None and fit.r2 is not None]
    if not scored:
        raise ValueError("The actions of the held-out episodes never vary, so no layer is best; name one: --layer N.")
    return max(scored, key=lambda fit: fit.r2).layer


def tail(count: int) -> int:
    """Episodes that are held out of `count`: the last fifth (MVP: 20 of 100), but at least one."""
    return max(1, count // 5)


def predicted(x: torch.Tensor, y: torch.Tensor, other: torch.Tensor, penalties: Sequence[float]) -> torch.Tensor:
    """Fit y (N, K) from x (N, P); predictions for the rows of `other`, (n, S, K)."""
    mean, std = (moment[0] for moment in train_moments(x[None], (1,)))
    weight, bias = ridge_weights((x - mean) / std, y, penalties)
    return torch.tensordot((other - mean) / std, weight, 1) + bias


def spread(y: torch.Tensor) -> torch.Tensor:
    """The deviation of each number of the action (K,), 1 for a constant one."""
    return train_moments(y[None], (1,))[1][0, 0]


def r2_by_number(guess: torch.Tensor, y: torch.Tensor) -> list[float | None]:
    """1 - squared error / squared deviation from the mean, for each column of (N, K); None for a constant column."""
    error = (guess - y).double().square().sum(0)
    total = (y - y.mean(0)).double().square().sum(0)
    return [(1 - e / t).item() if t > 1e-9 * len(y) else None for e, t in zip(error, total, strict=True)]
