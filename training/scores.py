"""Scores of a classification and their 95 % intervals: Wilson's, the exact one, and a bootstrap."""

import numpy as np
from scipy.stats import binomtest


def wilson_interval(correct: int, total: int) -> list[float]:
    """95 % Wilson score interval ``[low, high]`` of a proportion. Raises ValueError if there are no items."""
    return _proportion_interval(correct, total, "wilson")


def exact_interval(correct: int, total: int) -> list[float]:
    """95 % exact binomial interval ``[low, high]`` of a proportion (Clopper and Pearson 1934)."""
    return _proportion_interval(correct, total, "exact")


def _proportion_interval(correct: int, total: int, method: str) -> list[float]:
    if total == 0:
        raise ValueError("An interval needs at least one item; none was scored.")
    found = binomtest(int(correct), int(total)).proportion_ci(0.95, method)
    return [float(found.low), float(found.high)]


def bootstrap_interval(gains, classes=None, groups=None, seed: int = 0, samples: int = 2000) -> list[float]:
    """95 % percentile bootstrap interval ``[low, high]`` of a mean over items, or of a mean over class means.

    With `classes` the score is balanced, and items are resampled within each class (stratified), because the number of
    items per class is fixed and not part of the uncertainty. With `groups` whole groups are resampled instead, of any
    class, because the items of a group are similar. The interval is then for new groups, and too narrow for fewer than
    about ten groups.

    Args:
        gains: (N,), the contribution of each item: 1 if it is correct, else 0, or the difference of two predictors.
        classes: (N,), the true classes, for a balanced score.
        groups: (N,), the group of each item, such as its recording.
    Raises:
        ValueError: different lengths, no items, or a single group.
    """
    gains = np.asarray(gains, dtype=float)
    names, strata = np.unique(np.zeros(len(gains)) if classes is None else classes, return_inverse=True)
    if not len(gains) == len(strata) > 0:
        raise ValueError(f"A bootstrap needs items, and the class of each; there are {len(gains)} and {len(strata)}.")
    generator = np.random.default_rng(seed)
    if groups is None:
        means = []
        for stratum in range(len(names)):
            # Gains have a few values, so a resample is one multinomial draw of their counts.
            values, counts = np.unique(gains[strata == stratum], return_counts=True)
            means.append(generator.multinomial(counts.sum(), counts / counts.sum(), samples) @ values / counts.sum())
        scores = np.mean(means, axis=0)
    else:
        labels, numbers = np.unique(np.asarray(groups), return_inverse=True)
        if len(numbers) != len(gains) or len(labels) < 2:
            raise ValueError(
                f"A bootstrap over groups needs the group of each of the {len(gains)} items and at least two groups; "
                f"there are {len(numbers)} items of {len(labels)} groups."
            )
        shape = (len(labels), len(names))
        cells = np.ravel_multi_index((numbers, strata), shape)
        sums, sizes = (np.bincount(cells, weights, np.prod(shape)).reshape(shape) for weights in (gains, None))
        scores = []
        for _ in range(samples):
            times = np.bincount(generator.integers(0, len(labels), len(labels)), minlength=len(labels))
            drawn = times @ sizes  # of each class; a class that was not drawn does not count
            scores.append(np.mean((times @ sums)[drawn > 0] / drawn[drawn > 0]))
    return [float(bound) for bound in np.percentile(scores, [2.5, 97.5])]


def accuracy_interval(right, groups) -> list[float]:
    """95 % interval of an accuracy: Wilson's, or a bootstrap over groups if a group has several items.

    If all items are correct, or all wrong, the interval is Wilson's with one item per group. For a single group with
    correct and wrong items it is [0, 1].

    Args:
        right: (N,), booleans, whether each item is correct.
        groups: (N,), the group of each item, such as its video.
    """
    right, count = np.asarray(right), len(set(groups))
    if count == len(right):
        return wilson_interval(right.sum(), count)
    if right.all() or not right.any():
        return wilson_interval(count * right.all(), count)
    return [0.0, 1.0] if count < 2 else bootstrap_interval(right, groups=groups)


def per_class_accuracy(predictions, references, names: list[str]) -> list[dict]:
    """A row ``{"class", "n", "accuracy", "ci95"}`` per class, with Wilson intervals; None for a class without items.

    names: of the classes 0, 1, ... Raises ValueError for a true class that has no name.
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


def check_classes(numbers: np.ndarray, count: int) -> None:
    """Raises ValueError unless all class numbers are in 0 to count - 1."""
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if len(wrong):
        raise ValueError(f"Class {wrong[0]} is not one of the {count} classes 0 to {count - 1}; check the labels.")
