"""Accuracy and its 95 % intervals (Wilson score, exact, bootstrap); accuracy of the top 5, and distance on a grid."""

import re

import numpy as np
from scipy.stats import binomtest


def wilson_interval(correct: int, total: int) -> list[float]:
    """95 % Wilson score interval of a proportion, as ``[low, high]`` fractions. Raises ValueError if `total` is 0."""
    return _proportion_interval(correct, total, "wilson")


def exact_interval(correct: int, total: int) -> list[float]:
    """95 % exact binomial interval of a proportion (Clopper and Pearson 1934), as `wilson_interval`."""
    return _proportion_interval(correct, total, "exact")


def _proportion_interval(correct: int, total: int, method: str) -> list[float]:
    if total == 0:
        raise ValueError("An interval needs at least one item, but none was scored.")
    found = binomtest(int(correct), int(total)).proportion_ci(0.95, method)
    return [float(found.low), float(found.high)]


def bootstrap_interval(gains, classes=None, groups=None, seed: int = 0, samples: int = 2000) -> list[float]:
    """95 % percentile bootstrap interval ``[low, high]`` of the mean over items, or of the mean over classes.

    With `classes` the score is balanced, and the bootstrap is stratified: items are resampled within each class, since
    the class sizes are given and not part of the uncertainty. With `groups`, whole groups are resampled instead,
    whatever their classes, since items of one group are alike. The interval then holds for new groups; it is too narrow
    for fewer than about ten groups.

    Args:
        gains: (N,) contribution of each item: 1 if correct and 0 if not, or the difference of two predictors.
        classes: (N,) true classes, for a balanced score.
        groups: (N,) group of each item, such as its recording.
    Raises:
        ValueError: if the lengths differ, or there are no items, or only one group.
    """
    gains = np.asarray(gains, dtype=float)
    names, strata = np.unique(np.zeros(len(gains)) if classes is None else classes, return_inverse=True)
    if not len(gains) == len(strata) > 0:
        raise ValueError(f"A bootstrap needs items and a class for each, but got {len(gains)} and {len(strata)}.")
    generator = np.random.default_rng(seed)
    if groups is None:
        means = []
        for stratum in range(len(names)):
            # Gains take few values, so a resample is one multinomial draw of their counts.
            values, counts = np.unique(gains[strata == stratum], return_counts=True)
            means.append(generator.multinomial(counts.sum(), counts / counts.sum(), samples) @ values / counts.sum())
        scores = np.mean(means, axis=0)
    else:
        labels, numbers = np.unique(np.asarray(groups), return_inverse=True)
        if len(numbers) != len(gains) or len(labels) < 2:
            raise ValueError(
                f"A bootstrap over groups needs a group for each of the {len(gains)} items and at least two groups, "
                f"but got {len(numbers)} items in {len(labels)}."
            )
        shape = (len(labels), len(names))
        cells = np.ravel_multi_index((numbers, strata), shape)
        sums, sizes = (np.bincount(cells, weights, np.prod(shape)).reshape(shape) for weights in (gains, None))
        scores = []
        for _ in range(samples):
            times = np.bincount(generator.integers(0, len(labels), len(labels)), minlength=len(labels))
            drawn = times @ sizes  # per class; classes that were not drawn do not count
            scores.append(np.mean((times @ sums)[drawn > 0] / drawn[drawn > 0]))
    return [float(bound) for bound in np.percentile(scores, [2.5, 97.5])]


def accuracy_interval(right, groups) -> list[float]:
    """95 % interval of the accuracy: Wilson's, or a bootstrap over groups where a group has several items.

    right: (N,) booleans. groups: (N,) group of each item, such as its video. If all items are right, or all wrong, it
    is Wilson's interval for as many items as there are groups. For a single group with mixed outcomes it is [0, 1].
    """
    right, count = np.asarray(right), len(set(groups))
    if count == len(right):
        return wilson_interval(right.sum(), count)
    if right.all() or not right.any():
        return wilson_interval(count * right.all(), count)
    return [0.0, 1.0] if count < 2 else bootstrap_interval(right, groups=groups)


def per_class_accuracy(predictions, references, names: list[str]) -> list[dict]:
    """One row per class: ``{"class", "n", "accuracy", "ci95"}`` with Wilson intervals, None for classes without items.

    names: names of the classes 0, 1, ... Raises ValueError for a true class without a name.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    check_classes(references, len(names))
    rows = []
    for number, name in enumerate(names):
        inside = references == number
        n, right = int(inside.sum()), int((predictions[inside] == number).sum())
        ci95 = wilson_interval(right, n) if n else None
        rows.append({"class": name, "n": n, "accuracy": right / n if n else None, "ci95": ci95})
    return rows


def grid_cells(names: list[str]) -> np.ndarray | None:
    """x and y of classes that are the cells of a grid, int64 (C, 2): all names are "x,y". None for other classes."""
    found = [re.fullmatch(r"(-?\d+),(-?\d+)", name) for name in names]
    return np.array([[int(each[1]), int(each[2])] for each in found]) if names and all(found) else None


def grid_l1(predictions, references, cells: np.ndarray) -> float:
    """Mean distance, in steps along x and y, between predicted and true cells, as in CATER's evaluation.

    predictions, references: class numbers (N,). cells: of the classes, (C, 2).
    """
    return float(abs(cells[np.asarray(predictions)] - cells[np.asarray(references)]).sum(-1).mean())


def top_accuracy(scores, references, k: int = 5) -> float:
    """Share of items whose true class is among the k classes of the highest scores. scores: (N, C); references: (N,).

    Of equal scores the lower class number counts first.
    """
    first = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    return float((first == np.asarray(references)[:, None]).any(1).mean())


def check_classes(numbers: np.ndarray, count: int) -> None:
    """Raise ValueError unless all class numbers are between 0 and count - 1."""
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if len(wrong):
        raise ValueError(f"Class {wrong[0]} is not one of the {count} classes 0 to {count - 1}; check the labels.")
