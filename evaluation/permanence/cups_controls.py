"""Controls of `toto permanence cups`: clips without their history or its order, and predictors that read the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.backbones.contract import Backbone


class LastFrame(Backbone):
    """A backbone of which only the tokens of the last frame are read; in a causal model they follow all others."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.name, self.model, self.blocks = backbone.name, backbone.model, backbone.blocks
        self.device, self.num_frames = backbone.device, backbone.num_frames
        self.resolution = backbone.resolution

    @property
    def reads(self) -> object:
        return self.backbone.reads

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        return self.backbone.prepare(frames, image)

    def forward(self, inputs: torch.Tensor) -> tuple[Callable[[], object], Callable]:
        run, to_grid = self.backbone.forward(inputs)
        return run, lambda layer, hidden: to_grid(layer, hidden)[:, -1:]

    def untrained(self, seed: int) -> LastFrame:
        return LastFrame(self.backbone.untrained(seed))

    def describe(self) -> dict:
        return self.backbone.describe() | {"tokens": "of the last frame"}


def last_frame(frames: np.ndarray, _source: str) -> np.ndarray:
    """(T, R, R, 3) -> (1, R, R, 3)."""
    return frames[-1:]


@dataclass(frozen=True)
class ShuffledHistory:
    """The frames before the last one in another order, drawn for each clip from the seed and its name.

    The last frame stays, since the question is about it.
    """

    seed: int = 0

    def __call__(self, frames: np.ndarray, source: str) -> np.ndarray:
        order = np.random.default_rng([self.seed, *source.encode()]).permutation(len(frames) - 1)
        return frames[np.append(order, len(frames) - 1)]


def truthful(clips: list[dict], commonest: int, seed: int) -> dict[str, tuple[str, np.ndarray]]:
    """Predictors that read the truth of the test clips: {name: (what it is, cells (N,))}.

    clips: of `CupsWorld`. commonest: the cell that most training clips have.
    """
    rng = np.random.default_rng([seed, 5])
    last = np.array([clip["last_seen"] for clip in clips])
    cups = np.array([rng.choice(clip["cup_cells"][-1]) for clip in clips])
    in_sight = np.array([clip["visibility"][-1] > 0 for clip in clips])
    return {
        "last_seen": ("oracle: the cell in which it was last seen", np.where(last < 0, commonest, last)),
        "any_cup": ("oracle: its cell if it is in sight, else that of one of the cups", np.where(in_sight, last, cups)),
        "majority": ("the most common cell of the training clips", np.full(len(clips), commonest)),
    }
