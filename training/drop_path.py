"""Stochastic depth: in training, a row skips a block now and then (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class DropPath:
    """Hooks on the blocks of a Toto: a block's change of the residual stream is dropped for a row, or scaled up by what
    is dropped on average. Its chance grows linearly from 0 at the first block to `rate` at the last.

    A block goes as a whole, attention and MLP together, so that Toto's fused training block stays in use. Which blocks
    a row skips depends on the seed and the row's number alone. No weight, no field of the config: checkpoints and
    exports know nothing of it.

    Args:
        layers: the blocks that are trained, in order.
    """

    def __init__(self, layers: list[nn.Module], rate: float, seed: int):
        self.seed, self.rates = seed, np.linspace(0, rate, len(layers))
        self.scales: torch.Tensor | None = None
        for k, layer in enumerate(layers):
            layer.register_forward_hook(self._hook(k))

    def draw(self, numbers: list[int], device: torch.device) -> None:
        """For the rows of the next forward pass, and its backward pass: 0 or 1 / (1 - rate) for each block."""
        draws = np.stack([np.random.default_rng([self.seed, k, 2]).random(len(self.rates)) for k in numbers])
        scales = (draws >= self.rates) / (1 - self.rates)
        self.scales = torch.from_numpy(scales).float().to(device)  # (B, blocks)

    def _hook(self, k: int):
        def change(block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            if not block.training:
                return output
            (before,) = inputs  # (B, L, D)
            scale = self.scales[:, k, None, None].to(output.dtype)
            return before + scale * (output - before)

        return change
