"""A head that points at a cell: one direction of feature space, shared by all tokens, says where the object is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from evaluation.backbones.contract import Features
from tokenization.toyworld.cups import CELLS

PENALTIES = (0.001, 0.01, 0.1, 1.0)
ITERATIONS = 60  # of L-BFGS; the loss is convex


@dataclass(frozen=True)
class Pointed:
    """Heads of all layers, as `train_heads` returns them.

    Fields:
        val_accuracy: (L, 1). test_predictions: (L, 1, N) cells. test_probabilities: (L, 1, N, 36).
    """

    val_accuracy: torch.Tensor
    test_predictions: torch.Tensor
    test_probabilities: torch.Tensor

    def rank(self, layer: int, _task: int) -> float:
        return self.val_accuracy[layer, 0].item()


def point(features: list[Features], cells: list[torch.Tensor]) -> Pointed:
    """Train on the first split, choose the penalty on the second one, and predict the third, for every layer.

    The score of a cell is the product of its token with one vector, and the probabilities are their softmax over the
    36 cells (a conditional logit). A token has no absolute place under rotary positions, so a head that pools tokens
    must first find out where each of them is; this one need not. Paper silent; ours.

    Args:
        features: of train, validation and test; tokens (L, N, h * w, D) of one frame of 8 x 8.
        cells: numbers (N,) of each split.
    """
    accuracies, predictions, probabilities = [], [], []
    for layer in range(len(features[0].layers)):
        train, validation, test = (inside(each.tokens[layer].float()) for each in features)
        mean, scale = train.mean((0, 1)), train.std((0, 1)).clamp_min(1e-6)
        train, validation, test = ((each - mean) / scale for each in (train, validation, test))
        tried = []
        for penalty in PENALTIES:
            weight = fit(train, cells[0], penalty)
            scores = validation @ weight
            right = (scores.argmax(1) == cells[1]).float().mean().item()
            tried.append((right, -cross_entropy(scores, cells[1]).item(), weight))
        right, _, weight = max(tried, key=lambda each: each[:2])
        scores = test @ weight
        accuracies.append(right)
        predictions.append(scores.argmax(1))
        probabilities.append(scores.softmax(1))
    return Pointed(
        torch.tensor(accuracies)[:, None], torch.stack(predictions)[:, None], torch.stack(probabilities)[:, None]
    )


def inside(tokens: torch.Tensor) -> torch.Tensor:
    """The tokens of the cells, in the order of their numbers: (N, h * w, D) -> (N, 36, D)."""
    side = CELLS + 2
    return tokens.unflatten(1, (side, side))[:, 1:-1, 1:-1].flatten(1, 2)


def fit(tokens: torch.Tensor, cells: torch.Tensor, penalty: float) -> torch.Tensor:
    """The vector (D,) of least cross-entropy plus penalty times its squared length. tokens (N, 36, D), cells (N,)."""
    weight = torch.zeros(tokens.shape[2], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = cross_entropy(tokens @ weight, cells) + penalty * weight.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    return weight.detach()
