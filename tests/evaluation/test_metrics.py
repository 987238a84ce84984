"""Scores equal scikit-learn's; intervals cover what they should."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from evaluation.metrics import (
    BalancedAccuracy,
    Top1Accuracy,
    intervals_apart,
    paired_difference,
    wilson_interval,
)

RNG = np.random.default_rng(0)
TRUE = RNG.choice(5, size=200, p=[0.5, 0.2, 0.1, 0.1, 0.1])
PREDICTED = np.where(RNG.random(200) < 0.6, TRUE, RNG.integers(0, 7, 200))  # two classes that nothing is


def test_metrics_equal_scikit_learn():
    top1 = Top1Accuracy().compute(predictions=PREDICTED, references=TRUE)
    assert top1["accuracy"] == pytest.approx(accuracy_score(TRUE, PREDICTED))
    balanced = BalancedAccuracy().compute(predictions=PREDICTED, references=TRUE)
    assert balanced["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(TRUE, PREDICTED))


def test_metrics_gather_batches():
    metric = Top1Accuracy()
    for part in np.array_split(np.arange(200), 3):
        metric.add_batch(predictions=PREDICTED[part], references=TRUE[part])
    assert metric.compute()["accuracy"] == pytest.approx(accuracy_score(TRUE, PREDICTED))


def test_wilson_interval_known_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert wilson_interval(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx([0, 0.1611], abs=1e-4)
    with pytest.raises(ValueError, match="at least one item"):
        wilson_interval(0, 0)


def test_paired_difference_is_the_bootstrap_over_items():
    other = np.where(RNG.random(200) < 0.3, TRUE, PREDICTED)
    result = paired_difference(other, PREDICTED, TRUE)
    gain = (other == TRUE).astype(float) - (PREDICTED == TRUE)
    resampled = np.array([gain[RNG.integers(0, 200, 200)].mean() for _ in range(4000)])
    assert result["difference"] == pytest.approx(gain.mean())
    assert result["ci95"] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.01)


def test_equal_predictors_do_not_differ():
    assert paired_difference(PREDICTED, PREDICTED, TRUE) == {"difference": 0, "ci95": [0, 0]}


def test_intervals_apart():
    assert intervals_apart([0.4, 0.5], [0.2, 0.3])
    assert not intervals_apart([0.4, 0.5], [0.2, 0.45])
    assert not intervals_apart([0.1, 0.2], [0.3, 0.4])
