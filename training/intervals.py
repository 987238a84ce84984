"""95 % confidence intervals of an accuracy."""

import math

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson_interval(correct: float, total: int) -> list[float]:
    """95 % Wilson score interval of a proportion, as ``[low, high]`` fractions."""
    if total == 0:
        raise ValueError("an interval needs at least one item; none was scored.")
    p, n = correct / total, total
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def accuracy_interval(right, groups: list[str]) -> list[float]:
    """95 % interval of the mean of `right` (N,), booleans: Wilson's, or a bootstrap over groups of several items.

    With fewer than about ten groups it is too narrow. Where all items are right, or all wrong, or there is one group,
    it is Wilson's interval for as many items as there are groups.

    Args:
        groups: what each item belongs to, for example its video.
    """
    right = np.asarray(right)
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == len(right):
        return wilson_interval(int(right.sum()), len(right))
    if len(names) < 2 or right.all() or not right.any():
        return wilson_interval(float(right.mean()) * len(names), len(names))
    sizes, hits = np.bincount(numbers), np.bincount(numbers, right)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), 2000)
    return [float(bound) for bound in np.percentile((draws @ hits) / (draws @ sizes), [2.5, 97.5])]
