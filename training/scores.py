"""Plain scores of a classification and their 95 % intervals: Wilson's, the exact one, and a bootstrap."""

import numpy as np
from scipy.stats import binomtest


def wilson_interval(correct: int, total: int) -> list[float]:
    """95 % Wilson score interval of a proportion, as ``[low, high]`` fractions. Raises ValueError without items."""
    return _proportion_interval(correct, total, "wilson")


def exact_interval(correct: int, total: int) -> list[float]:
    """95 % interval of a proportion by the binomial distribution itself (Clopper and Pearson 1934)."""
    return _proportion_interval(correct, total, "exact")


def _proportion_interval(correct: int, total: int, method: str) -> list[float]:
    if total == 0:
        raise ValueError("An interval needs at least one item; none was scored.")
    found = binomtest(int(correct), int(total)).proportion_ci(0.95, method)
    return [float(found.low), float(found.high)]


def bootstrap_interval(gains, classes=None, groups=None, seed: int = 0, samples: int = 2000) -> list[float]:
    """95 % percentile bootstrap interval ``[low, high]`` of a mean over items, or over classes of the mean in each.

    With `classes` the score is balanced, and the items of each class are resampled among themselves (stratified): how
    many items each class has is given, so it is not part of the uncertainty. With `groups` whole groups are resampled
    instead, whatever their classes, since the items of one group are alike; the interval is then for new groups, and
    too narrow for fewer than about ten of them.

    Args:
        gains: (N,), what each item adds: 1 where it is right and 0 where it is wrong, or the difference of two
            predictors in this.
        classes: (N,), the true classes where the score is balanced.
        groups: (N,), what each item belongs to, such as its recording.
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
                f"A bootstrap over groups needs the group of each of the {len(gains)} items and two groups or more, "
                f"not {len(numbers)} items of {len(labels)}."
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
    """95 % interval of the share of `right` (N,), booleans: Wilson's, or a bootstrap over groups of several items.

    groups: (N,), what each item belongs to, such as its video. Where all items are right, or all wrong, the interval is
    Wilson's of as many items as there are groups; of a single group whose items differ nothing is known: [0, 1].
    """
    right, count = np.asarray(right), len(set(groups))
    if count == len(right):
        return wilson_interval(right.sum(), count)
    if right.all() or not right.any():
        return wilson_interval(count * right.all(), count)
    return [0.0, 1.0] if count < 2 else bootstrap_interval(right, groups=groups)


def per_class_accuracy(predictions, references, names: list[str]) -> list[dict]:
    """A row for each class: ``{"class", "n", "accuracy", "ci95"}`` with Wilson intervals; None where no item has it.

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
