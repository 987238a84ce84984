"""Success of rollouts with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.robot.results import EpisodeScore, Latency, Score
from evaluation.robot.rollouts import Clock, Rollout
from training.flags import require
from training.scores import exact_interval, wilson_interval

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
        below, above = np.percentile(two_way(success, seed), [2.5, 97.5])
        low, high = min(low, float(below)), max(high, float(above))
    return [max(0.0, float(low)), min(1.0, float(high))]  # sums of fractions round


def paired_interval(differences, seed: int = 0) -> list[float]:
    """95 % interval of the mean difference of two arms, over policy seeds and starts.

    A two-way bootstrap as in `pooled_interval`, at least as wide as the exact interval of the pairs that differ
    (McNemar's test): of few pairs, a bootstrap would call four against none a certain difference.

    Args:
        differences: -1, 0 or 1 (policy seeds, starts): the success of one arm minus that of the other.
    """
    differences = np.asarray(differences, float)
    starts, pairs = differences.shape[1], differences.size
    ahead, behind = int((differences > 0).sum()), int((differences < 0).sum())
    if ahead + behind:
        share = (ahead + behind) / pairs
        low, high = (share * (2 * bound - 1) for bound in exact_interval(ahead, ahead + behind))
    else:
        high = exact_interval(0, pairs)[1]
        low = -high
    if starts > 1:
        below, above = np.percentile(two_way(differences, seed), [2.5, 97.5])
        low, high = min(low, float(below)), max(high, float(above))
    return [max(-1.0, float(low)), min(1.0, float(high))]  # as above


def two_way(values: np.ndarray, seed: int) -> np.ndarray:
    """Means (DRAWS,) of values (policy seeds, starts) whose rows and columns are drawn again independently."""
    generator, (seeds, starts) = np.random.default_rng(seed), values.shape
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    columns = generator.multinomial(starts, np.full(starts, 1 / starts), DRAWS) / starts
    return np.einsum("ds,st,dt->d", rows, values, columns)


def require_fit(policy, simulator, name: str, task: str | None = None) -> None:
    """Raises ValueError if a policy was trained for another task or robot than the simulator's."""
    config, task = policy.config, task or simulator.task
    own = (config.simulator or {}).get("task")
    require(
        own == task,
        f"The policy {name} was trained for the task '{own}', not '{task}'; evaluate policies of one task.",
    )
    for kind in ("action", "state"):
        mine, its = getattr(config, f"{kind}_size"), getattr(simulator, f"{kind}_size")
        require(
            mine == its,
            f"The policy {name} has {mine} {kind} numbers and the simulator of {task} {its}; train it on episodes "
            "of this simulator.",
        )
