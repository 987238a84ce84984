"""A moving average of the weights, which generalises better than the weights themselves: evaluated and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Average:
    """The exponential moving average of a model's trainable weights, beside them on the same device (and shard).

    Args:
        decay: per step; in the first steps less, (1 + step) / (10 + step), so that it forgets where it began.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.names, self.weights = list(trained), list(trained.values())
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step `step`, from 1."""
        rest = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight.detach(), rest)

    def put_aside(self) -> dict[str, torch.Tensor]:
        """Name -> what is not in the model now: the averages, and inside `applied()` the weights themselves."""
        return dict(zip(self.names, self.averages, strict=True))

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self.averages, self.weights, strict=True):
            before = weight.detach().clone()
            weight.copy_(average)
            average.copy_(before)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside it the model has the averages for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()
