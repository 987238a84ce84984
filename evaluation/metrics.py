"""The scores of this project, `evaluate.Metric` classes that need no network, and intervals of their differences."""

import math
from collections.abc import Callable, Iterator

import datasets
import evaluate
import numpy as np

from training.intervals import wilson_interval

FEW = 200  # items on which two predictors differ, up to which a bootstrap of them is not left alone


def accuracy(predictions, references) -> float:
    """Share of items whose predicted class is the true one."""
    return float(np.mean(np.asarray(predictions) == np.asarray(references)))


def balanced_accuracy(predictions, references) -> float:
    """Mean over the classes present of their recall (also called mean class accuracy).

    As scikit-learn's `balanced_accuracy_score`: a class that no item has does not count.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    _, classes = np.unique(references, return_inverse=True)
    return float(np.mean(np.bincount(classes, weights=predictions == references) / np.bincount(classes)))


# What a task's `metric` names: predicted and true class numbers (N,) -> a fraction.
METRICS: dict[str, Callable] = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


def _info(description: str, predictions, what: str = "predictions, references: class numbers, one per item."):
    features = datasets.Features({"predictions": predictions, "references": datasets.Value("int64")})
    return evaluate.MetricInfo(description=description, citation="", inputs_description=what, features=features)


class Top1Accuracy(evaluate.Metric):
    """Share of items whose predicted class is the true one: ``compute(...) -> {"accuracy": fraction}``."""

    def _info(self):
        return _info("Share of items whose predicted class is the true one.", datasets.Value("int64"))

    def _compute(self, predictions, references):
        return {"accuracy": accuracy(predictions, references)}


class BalancedAccuracy(evaluate.Metric):
    """Mean over the classes present of their recall: ``compute(...) -> {"balanced_accuracy": fraction}``."""

    def _info(self):
        return _info("Mean over the true classes of the share of their items predicted right.", datasets.Value("int64"))

    def _compute(self, predictions, references):
        return {"balanced_accuracy": balanced_accuracy(predictions, references)}


class TopKAccuracy(evaluate.Metric):
    """Share of items whose true class is among the k best scored: ``compute(..., k=5) -> {"top5_accuracy": fraction}``.

    predictions: probabilities or logits (N, classes). Of equal scores the higher class number comes first, as in
    scikit-learn's `top_k_accuracy_score`.
    """

    def _info(self):
        return _info(
            "Share of items whose true class is among the k classes with the highest scores.",
            datasets.Sequence(datasets.Value("float64")),
            "predictions: a score for each class, one list per item; references: class numbers, one per item.",
        )

    def _compute(self, predictions, references, k: int = 5):
        scores, references = np.asarray(predictions), np.asarray(references)
        if not 1 <= k <= scores.shape[1]:
            raise ValueError(f"the k of a top-k accuracy must lie in 1..{scores.shape[1]} (the classes), not {k}.")
        best = np.argsort(scores, axis=1, kind="stable")[:, -k:]
        return {f"top{k}_accuracy": float(np.mean((best == references[:, None]).any(1)))}


def per_class_accuracy(predictions, references, names: list[str]) -> list[dict]:
    """A row for each class: ``{"class", "n", "accuracy", "ci95"}`` with Wilson intervals; None where no item has it.

    names: of the classes 0, 1, ... Raises ValueError for a true class that has no name.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    _check_labels(references, len(names))
    rows = []
    for number, name in enumerate(names):
        inside = references == number
        n, right = int(inside.sum()), int((predictions[inside] == number).sum())
        ci95 = wilson_interval(right, n) if n else None
        rows.append({"class": name, "n": n, "accuracy": right / n if n else None, "ci95": ci95})
    return rows


def confusion_matrix(predictions, references, classes: int) -> np.ndarray:
    """Counts (true class, predicted class), int64 (classes, classes), as scikit-learn's. ValueError out of range."""
    predictions, references = np.asarray(predictions), np.asarray(references)
    _check_labels(references, classes)
    _check_labels(predictions, classes)
    return np.bincount(references * classes + predictions, minlength=classes**2).reshape(classes, classes)


def _check_labels(labels: np.ndarray, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"class {wrong[0]} is none of the {classes} classes 0..{classes - 1}; check the label column.")


def exact_interval(correct: int, total: int) -> list[float]:
    """95 % interval of a proportion by the binomial distribution itself (Clopper and Pearson 1934)."""

    def tail(p: float, counts: range) -> float:
        """P(count in counts) of `total` trials of probability p."""
        logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in counts]
        return sum(
            math.exp(log + k * math.log(p) + (total - k) * math.log1p(-p)) for log, k in zip(logs, counts, strict=True)
        )

    def crossing(counts: range, rises: bool) -> float:
        """The p at which the tail is 2.5 %."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if (tail(middle, counts) < 0.025) == rises else (low, middle)
        return (low + high) / 2

    return [
        0.0 if correct == 0 else crossing(range(correct, total + 1), rises=True),
        1.0 if correct == total else crossing(range(correct + 1), rises=False),
    ]


def bootstrap_interval(
    metric: str | Callable, predictions, references, groups=None, seed: int = 0, samples: int = 2000
) -> list[float]:
    """95 % percentile bootstrap interval ``[low, high]`` of a metric.

    Args:
        metric: a name of METRICS, or a function of (predictions, references).
        predictions, references: one per item; predictions may have more axes (scores).
        groups: what each item belongs to, say its recording. Whole groups are then resampled, since items of one are
            alike; the interval is for new groups. With fewer than ten groups or so it is too narrow.
    Raises:
        ValueError: unlike lengths, or fewer than two items or groups.
    """
    metric = METRICS[metric] if isinstance(metric, str) else metric
    predictions, references = np.asarray(predictions), np.asarray(references)
    _same_length(references, predictions)
    values = [metric(predictions[i], references[i]) for i in _resamples(len(references), groups, seed, samples)]
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]


def paired_difference(
    a, b, references, seed: int = 0, samples: int | None = None, metric: str | Callable = "accuracy", groups=None
) -> dict:
    """The metric of predictions `a` minus that of `b` on the same items, with a 95 % bootstrap interval.

    Items (or whole groups, see `bootstrap_interval`) are resampled, both predictors together, so what they find
    equally easy cancels. For plain accuracy each item adds -1, 0 or +1 to the difference, so a resample is one
    multinomial draw of three counts: exact and fast. samples: 10,000 of these, or 2,000 of others, by default.

    A bootstrap of the items on which only one side is right, if they are few, may never see the other outcome: four
    against none would be a sure thing. So an interval of plain accuracy is at least as wide as the exact one of these
    items (McNemar's test), and of groups it holds nought unless the sign test of those that differ excludes it. Of one
    group alone nothing is known: [-1, 1].
    """
    a, b, references = np.asarray(a), np.asarray(b), np.asarray(references)
    _same_length(references, a, b)
    if metric == "accuracy" and groups is None:
        right_a, right_b = a == references, b == references
        n = len(references)
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        shares = [only_a / n, only_b / n, (n - only_a - only_b) / n]
        draws = np.random.default_rng(seed).multinomial(n, shares, samples or 10_000)
        difference, values = (only_a - only_b) / n, (draws[:, 0] - draws[:, 1]) / n
    else:
        score = METRICS[metric] if isinstance(metric, str) else metric
        difference = score(a, references) - score(b, references)
        if groups is not None and len(set(groups)) < 2:
            return {"difference": difference, "ci95": [-1.0, 1.0]}
        values = [
            score(a[rows], references[rows]) - score(b[rows], references[rows])
            for rows in _resamples(len(references), groups, seed, samples or 2000)
        ]
    low, high = (float(bound) for bound in np.percentile(values, [2.5, 97.5]))
    if metric == "accuracy" and groups is None and 0 < (differ := only_a + only_b) <= FEW:
        exact = [(2 * share - 1) * differ / n for share in exact_interval(only_a, differ)]
        low, high = min(low, exact[0]), max(high, exact[1])
    elif metric == "accuracy" and groups is not None:
        _, numbers = np.unique(np.asarray(groups), return_inverse=True)
        leads = np.bincount(numbers, (a == references).astype(int) - (b == references))
        ahead, differ = int((leads > 0).sum()), int((leads != 0).sum())
        if differ <= FEW and exact_interval(ahead, differ)[0] <= 0.5 <= exact_interval(ahead, differ)[1]:
            low, high = min(low, 0.0), max(high, 0.0)
    return {"difference": difference, "ci95": [low, high]}


def unpaired_difference(a: float, a_ci95: list[float], b: float, b_ci95: list[float]) -> dict:
    """Fraction a minus b of two sets of items, and its 95 % interval from theirs (Newcombe 1998, method 10)."""
    low = a - b - math.hypot(a - a_ci95[0], b_ci95[1] - b)
    high = a - b + math.hypot(a_ci95[1] - a, b - b_ci95[0])
    return {"difference": a - b, "ci95": [low, high]}


def _same_length(references: np.ndarray, *predictions: np.ndarray) -> None:
    lengths = {len(references), *map(len, predictions)}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"predictions and references must be of the same items, at least one: {sorted(lengths)}.")


def _resamples(n: int, groups, seed: int, samples: int) -> Iterator[np.ndarray]:
    """Row numbers of `samples` bootstrap resamples of n items, or of the items of whole groups."""
    rng = np.random.default_rng(seed)
    if groups is None:
        for _ in range(samples):
            yield rng.integers(0, n, n)
        return
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    if len(numbers) != n or len(names) < 2:
        raise ValueError(
            f"resampling groups needs the group of each of the {n} items and two groups or more, not {len(numbers)} "
            f"items of {len(names)}."
        )
    members = [np.flatnonzero(numbers == group) for group in range(len(names))]
    for _ in range(samples):
        yield np.concatenate([members[group] for group in rng.integers(0, len(names), len(names))])


def verdict(ci95: list[float]) -> str:
    """What the interval of a difference says of its first side: "above", "below", or "not apart" where it holds 0."""
    low, high = ci95
    return "above" if low > 0 else "below" if high < 0 else "not apart"
