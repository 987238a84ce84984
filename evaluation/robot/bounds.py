"""What any policy is compared with from the same starts: the scripted expert (ceiling) and random actions (floor)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class ExpertActions:
    """The scripted expert as a policy: row k of a batch is the episode of simulator k.

    Args:
        simulators: those in which it is rolled out, in the same order.
    """

    def __init__(self, simulators: list):
        self.simulators = simulators

    def reset(self, batch_size: int = 1) -> None:
        self.rows = list(range(batch_size))

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def act(self, images: np.ndarray, states: np.ndarray, environment_states: np.ndarray | None = None) -> np.ndarray:
        return np.stack([self.simulators[row].expert() for row in self.rows]).astype(np.float32)


class RandomActions:
    """Uniform actions in [-1, 1], drawn anew at every step; each episode has its own generator."""

    def __init__(self, action_size: int, seed: int = 0):
        self.action_size, self.seed, self.episodes = action_size, seed, 0

    def reset(self, batch_size: int = 1) -> None:
        numbers = range(self.episodes, self.episodes + batch_size)
        self.generators = [np.random.default_rng([self.seed, number]) for number in numbers]
        self.episodes += batch_size

    def keep(self, rows: Sequence[int]) -> None:
        self.generators = [self.generators[row] for row in rows]

    def act(self, images: np.ndarray, states: np.ndarray, environment_states: np.ndarray | None = None) -> np.ndarray:
        return np.stack([each.uniform(-1, 1, self.action_size) for each in self.generators]).astype(np.float32)
