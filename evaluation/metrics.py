"""`evaluate.Metric` classes, which need no network, and differences between two predictors."""

import math
from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from sklearn import metrics

from training.scores import bootstrap_interval, check_classes, exact_interval

FEW = 200  # if predictors differ on at most this many items, an interval is at least as wide as the exact one


def accuracy(predictions, references) -> float:
    """Share of items whose predicted class is the true one."""
    return float(metrics.accuracy_score(references, predictions))


def balanced_accuracy(predictions, references) -> float:
    """Mean recall over the classes that occur (also called mean class accuracy).

    `sklearn.metrics.balanced_accuracy_score` without its warning about predicted classes that do not occur.
    """
    present = np.unique(references)
    return float(metrics.recall_score(references, predictions, labels=present, average="macro", zero_division=0))


# name -> function of predicted and true class numbers (N,) that returns a fraction
METRICS: dict[str, Callable] = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


class _ClassMetric(evaluate.Metric):
    """A metric of METRICS as ``compute(predictions=..., references=...) -> {score: fraction}``."""

    score: str

    def _info(self):
        number = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions, references: class numbers, one per item.",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references):
        return {self.score: METRICS[self.score](predictions, references)}


class Top1Accuracy(_ClassMetric):
    """Share of items whose predicted class is the true one: ``compute(...) -> {"accuracy": fraction}``."""

    score = "accuracy"


class BalancedAccuracy(_ClassMetric):
    """Mean recall over the classes that occur: ``compute(...) -> {"balanced_accuracy": fraction}``."""

    score = "balanced_accuracy"


def confusion_matrix(predictions, references, classes: int) -> np.ndarray:
    """Counts (true class, predicted class), int64 (classes, classes). Raises ValueError for a class out of range."""
    for numbers in (references, predictions):  # scikit-learn would leave such items out
        check_classes(np.asarray(numbers), classes)
    return metrics.confusion_matrix(references, predictions, labels=range(classes))


def paired_difference(
    a, b, references, seed: int = 0, samples: int | None = None, metric: str = "accuracy", groups=None
) -> dict:
    """The metric of predictions `a` minus that of `b` on the same items, with a 95 % bootstrap interval.

    Items or whole groups are resampled as in `training.scores.bootstrap_interval`, for both predictors together, so
    that items of equal difficulty for both cancel. samples: by default 10,000 of items, or 2,000 of groups.

    If the predictors differ on few items, a bootstrap can be too narrow: four items against none would seem a certain
    difference. So an interval of plain accuracy is at least as wide as the exact one of these items (McNemar's test),
    and an interval over groups includes 0 unless the sign test of the groups that differ excludes it. For a single
    group the interval is [-1, 1].

    Raises:
        ValueError: different lengths, or no items.
    """
    a, b, references = np.asarray(a), np.asarray(b), np.asarray(references)
    n, lengths = len(references), sorted({len(references), len(a), len(b)})
    if len(lengths) > 1 or n == 0:
        raise ValueError(
            f"Predictions and references have the lengths {lengths}; pass both for the same items, at least one."
        )
    difference = METRICS[metric](a, references) - METRICS[metric](b, references)
    gains = (a == references).astype(int) - (b == references)
    if groups is not None and len(set(groups)) < 2:
        return {"difference": difference, "ci95": [-1.0, 1.0]}
    classes = references if metric == "balanced_accuracy" else None
    low, high = bootstrap_interval(gains, classes, groups, seed, samples or (10_000 if groups is None else 2000))
    if metric == "accuracy":
        _, numbers = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
        leads = np.bincount(numbers, gains)
        ahead, differ = int((leads > 0).sum()), int((leads != 0).sum())
        if 0 < differ <= FEW:
            exact = [2 * share - 1 for share in exact_interval(ahead, differ)]
            if groups is None:
                low, high = min(low, exact[0] * differ / n), max(high, exact[1] * differ / n)
            elif exact[0] <= 0 <= exact[1]:
                low, high = min(low, 0.0), max(high, 0.0)
    return {"difference": difference, "ci95": [low, high]}


def unpaired_difference(a: float, a_ci95: list[float], b: float, b_ci95: list[float]) -> dict:
    """Difference of the fractions a and b of two sets of items, with a 95 % interval (Newcombe 1998, method 10)."""
    low = a - b - math.hypot(a - a_ci95[0], b_ci95[1] - b)
    high = a - b + math.hypot(a_ci95[1] - a, b - b_ci95[0])
    return {"difference": a - b, "ci95": [low, high]}


def verdict(ci95: list[float]) -> str:
    """The verdict on the first of two predictors from the interval of their difference: above, below, or neither."""
    low, high = ci95
    return "above" if low > 0 else "below" if high < 0 else "no significant difference"
