"""Success of rollouts with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.robot.results import EpisodeScore, Latency, Score
from evaluation.robot.rollouts import Clock, Rollout
from training.flags import require
from training.scores import wilson_interval

DRAWS = 10_000


def score_of(rollouts: Sequence[Rollout]) -> Score:
    """Success with Wilson's interval over the episodes."""
    right = sum(each.success for each in rollouts)
    steps = [each.steps for each in rollouts if each.success]
    return Score(
        success=right / len(rollouts),
        ci95=wilson_interval(right, len(rollouts)),
        steps=float(np.mean(steps)) if steps else None,
        episodes=[EpisodeScore(seed=each.seed, success=each.success, steps=each.steps) for each in rollouts],
    )


def latency_of(clock: Clock) -> Latency:
    count = max(1, clock.observations)
    return Latency(
        **{name: 1000 * getattr(clock, name) / count for name in ("rendering", "seeing", "head")},
    )


def pooled_interval(success, seed: int = 0) -> list[float]:
    """95 % interval of the mean success of an arm, over its policy seeds and the starts.

    All policies act from the same starts, so seeds and starts are drawn again independently (a two-way bootstrap,
    10,000 draws). Three seeds make that too narrow where they agree by chance, so it is at least as wide as Wilson's
    interval of all episodes.

    Args:
        success: booleans (policy seeds, starts).
    """
    success = np.asarray(success, float)
    mean, (seeds, starts) = success.mean(), success.shape
    low, high = wilson_interval(round(mean * seeds * starts), seeds * starts)
    if seeds > 1:
        generator = np.random.default_rng(seed)
        rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
        columns = generator.multinomial(starts, np.full(starts, 1 / starts), DRAWS) / starts
        drawn = np.einsum("ds,st,dt->d", rows, success, columns)
        below, above = np.percentile(drawn, [2.5, 97.5])
        low, high = min(low, float(below)), max(high, float(above))
    return [float(low), float(high)]


def paired_interval(differences, seed: int = 0) -> list[float]:
    """95 % two-way bootstrap interval of the mean of differences (policy seeds, starts), as `pooled_interval`."""
    differences = np.asarray(differences, float)
    seeds, starts = differences.shape
    if starts < 2:
        return [-1.0, 1.0]
    generator = np.random.default_rng(seed)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    columns = generator.multinomial(starts, np.full(starts, 1 / starts), DRAWS) / starts
    return [float(x) for x in np.percentile(np.einsum("ds,st,dt->d", rows, differences, columns), [2.5, 97.5])]


def require_fit(policy, simulator, name: str, task: str | None = None) -> None:
    """Raises ValueError if a policy was trained for another task or robot than the simulator's."""
    config, task = policy.config, task or simulator.task
    require(
        config.task == task,
        f"The policy {name} was trained for the task '{config.task}', not '{task}'; evaluate policies of one task.",
    )
    for kind in ("action", "state"):
        mine, its = getattr(config, f"{kind}_size"), getattr(simulator, f"{kind}_size")
        require(
            mine == its,
            f"The policy {name} has {mine} {kind} numbers and the simulator of {task} {its}; train it on episodes "
            "of this simulator.",
        )
