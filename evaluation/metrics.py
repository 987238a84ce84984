"""The scores of this project and their intervals: `evaluate.Metric` classes that need no network, Wilson, bootstrap."""

import math

import datasets
import evaluate
import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def _info(description: str) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="predictions, references: class numbers, one per item.",
        features=features,
    )


class Top1Accuracy(evaluate.Metric):
    """Share of items whose predicted class is the true one: ``compute(...) -> {"accuracy": fraction}``."""

    def _info(self):
        return _info("Share of items whose predicted class is the true one.")

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class BalancedAccuracy(evaluate.Metric):
    """Mean over the classes present of their recall: ``compute(...) -> {"balanced_accuracy": fraction}``.

    As scikit-learn's `balanced_accuracy_score`: a class that no item has does not count.
    """

    def _info(self):
        return _info("Mean over the true classes of the share of their items predicted right.")

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        recalls = [np.mean(predictions[references == c] == c) for c in np.unique(references)]
        return {"balanced_accuracy": float(np.mean(recalls))}


def wilson_interval(correct: int, total: int) -> list[float]:
    """95 % Wilson score interval of a proportion, as ``[low, high]`` fractions."""
    if total == 0:
        raise ValueError("an interval needs at least one item; none was scored.")
    p, n = correct / total, total
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def paired_difference(
    a: np.ndarray, b: np.ndarray, references: np.ndarray, seed: int = 0, samples: int = 10_000
) -> dict:
    """Accuracy of predictions `a` minus that of `b` on the same items, with a 95 % bootstrap interval.

    Items are resampled, both predictors together, so what they find equally easy cancels. Each item adds
    -1, 0 or +1 to the difference, so a resample is one multinomial draw of three counts: exact and fast.
    """
    references = np.asarray(references)
    right_a, right_b = np.asarray(a) == references, np.asarray(b) == references
    n = len(references)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    draws = np.random.default_rng(seed).multinomial(n, [only_a / n, only_b / n, (n - only_a - only_b) / n], samples)
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / n, [2.5, 97.5])
    return {"difference": (only_a - only_b) / n, "ci95": [float(low), float(high)]}


def intervals_apart(higher: list[float], lower: list[float]) -> bool:
    """True when the first interval lies wholly above the second."""
    return higher[0] > lower[1]
