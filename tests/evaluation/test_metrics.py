"""Scores equal scikit-learn's; intervals cover what they should."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from evaluation.metrics import (
    METRICS,
    BalancedAccuracy,
    Top1Accuracy,
    TopKAccuracy,
    bootstrap_interval,
    confusion_matrix,
    exact_interval,
    paired_difference,
    per_class_accuracy,
    unpaired_difference,
    verdict,
)
from training.intervals import accuracy_interval, wilson_interval

RNG = np.random.default_rng(0)
TRUE = RNG.choice(5, size=200, p=[0.5, 0.2, 0.1, 0.1, 0.1])
PREDICTED = np.where(RNG.random(200) < 0.6, TRUE, RNG.integers(0, 7, 200))  # two classes that nothing is


def test_metrics_equal_scikit_learn():
    top1 = Top1Accuracy().compute(predictions=PREDICTED, references=TRUE)
    assert top1["accuracy"] == pytest.approx(accuracy_score(TRUE, PREDICTED))
    balanced = BalancedAccuracy().compute(predictions=PREDICTED, references=TRUE)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert balanced["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(TRUE, PREDICTED))
    assert METRICS["accuracy"](PREDICTED, TRUE) == top1["accuracy"]
    assert METRICS["balanced_accuracy"](PREDICTED, TRUE) == balanced["balanced_accuracy"]
    assert np.array_equal(confusion_matrix(PREDICTED, TRUE, 7), sklearn_confusion_matrix(TRUE, PREDICTED))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k):
    scores = RNG.integers(0, 4, (200, 7))  # many ties
    found = TopKAccuracy().compute(predictions=scores, references=TRUE, k=k)
    assert found == {f"top{k}_accuracy": pytest.approx(top_k_accuracy_score(TRUE, scores, k=k, labels=range(7)))}
    with pytest.raises(ValueError, match=r"must lie in 1\.\.7"):
        TopKAccuracy().compute(predictions=scores, references=TRUE, k=8)


def test_per_class_accuracy():
    rows = per_class_accuracy(PREDICTED, TRUE, list("abcdef"))
    assert [row["class"] for row in rows] == list("abcdef") and sum(row["n"] for row in rows) == 200
    matrix = sklearn_confusion_matrix(TRUE, PREDICTED)
    for number, row in enumerate(rows[:5]):
        assert row["accuracy"] == pytest.approx(matrix[number, number] / matrix[number].sum())
        assert row["ci95"] == wilson_interval(int(matrix[number, number]), int(matrix[number].sum()))
    assert rows[5] == {"class": "f", "n": 0, "accuracy": None, "ci95": None}


def test_classes_out_of_range_are_one_sentence():
    with pytest.raises(ValueError, match=r"class 4 is none of the 4 classes 0\.\.3; check the label column"):
        per_class_accuracy(PREDICTED, TRUE, list("abcd"))
    with pytest.raises(ValueError, match="class -1 is none of the 2 classes"):
        confusion_matrix([0, 1], [-1, 1], 2)


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


def test_the_general_bootstrap_is_the_fast_one_for_accuracy():
    other = np.where(RNG.random(200) < 0.3, TRUE, PREDICTED)
    fast = paired_difference(other, PREDICTED, TRUE)
    slow = paired_difference(other, PREDICTED, TRUE, metric=METRICS["accuracy"], samples=4000)
    each = paired_difference(other, PREDICTED, TRUE, groups=np.arange(200), samples=4000)
    assert fast["difference"] == pytest.approx(slow["difference"]) == pytest.approx(each["difference"])
    assert fast["ci95"] == pytest.approx(slow["ci95"], abs=0.01) and fast["ci95"] == pytest.approx(
        each["ci95"], abs=0.01
    )
    balanced = paired_difference(other, PREDICTED, TRUE, metric="balanced_accuracy", samples=500)
    gain = METRICS["balanced_accuracy"](other, TRUE) - METRICS["balanced_accuracy"](PREDICTED, TRUE)
    assert balanced["difference"] == gain and balanced["ci95"][0] < gain < balanced["ci95"][1]


def test_the_interval_of_accuracy_is_about_wilsons():
    low, high = bootstrap_interval("accuracy", PREDICTED, TRUE)
    assert [low, high] == pytest.approx(wilson_interval(int((PREDICTED == TRUE).sum()), 200), abs=0.015)


def test_whole_groups_are_resampled():
    # 20 recordings of 10 clips, each all right or all wrong: ten times fewer independent items than clips
    right = np.repeat(np.arange(20) % 2, 10)
    groups = np.repeat([f"recording {i}" for i in range(20)], 10)
    width = np.ptp(bootstrap_interval("balanced_accuracy", right, np.ones(200, int), groups=groups))
    assert width == pytest.approx(np.ptp(bootstrap_interval("accuracy", right[::10], np.ones(20, int))), abs=0.06)
    assert width > 2.5 * np.ptp(bootstrap_interval("balanced_accuracy", right, np.ones(200, int)))


@pytest.mark.parametrize("groups", [["a"] * 200, ["a", "b"]])
def test_groups_that_cannot_be_resampled(groups):
    with pytest.raises(ValueError, match="two groups or more"):
        bootstrap_interval("accuracy", PREDICTED, TRUE, groups=groups)


def test_unpaired_difference_known_values():
    # Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80
    a, b = wilson_interval(56, 70), wilson_interval(48, 80)
    result = unpaired_difference(56 / 70, a, 48 / 80, b)
    assert result["difference"] == pytest.approx(0.2)
    assert result["ci95"] == pytest.approx([0.0524, 0.3339], abs=1e-4)


def test_unlike_lengths_are_one_sentence():
    with pytest.raises(ValueError, match="of the same items"):
        paired_difference(PREDICTED[:3], PREDICTED, TRUE)


@pytest.mark.parametrize(
    "ci95, says", [([0.01, 0.2], "above"), ([-0.2, -0.01], "below"), ([-0.1, 0.2], "not apart"), ([0, 0], "not apart")]
)
def test_what_an_interval_says(ci95, says):
    assert verdict(ci95) == says


def test_clips_of_one_video_are_no_independent_items():
    right = np.repeat(np.random.default_rng(0).random(50) < 0.6, 8)
    alone, together = (accuracy_interval(right, groups) for groups in (range(400), np.repeat(range(50), 8)))
    assert alone == wilson_interval(int(right.sum()), 400)
    width = [high - low for low, high in (alone, together)]
    assert 2 < width[1] / width[0] < 4  # eight clips that are all alike: about the root of eight


def test_intervals_of_few_do_not_collapse():
    """Exact where few items differ: six against none is the least that is sure, as McNemar's exact test has it."""
    references = np.zeros(300, int)
    for only_a, only_b, says in ((4, 0, "not apart"), (5, 0, "not apart"), (6, 0, "above"), (7, 1, "not apart")):
        a, b = references.copy(), references.copy()
        b[:only_a], a[only_a : only_a + only_b] = 1, 1
        found = paired_difference(a, b, references)
        assert verdict(found["ci95"]) == says, (only_a, only_b)
        assert found["ci95"][0] <= found["difference"] <= found["ci95"][1]
    videos = np.repeat(np.arange(100), 2)
    for ahead, says in ((4, "not apart"), (8, "above")):  # of a hundred videos of two clips
        b = (videos < ahead).astype(int)
        assert verdict(paired_difference(0 * b, b, 0 * b, groups=videos)["ci95"]) == says
    one_video = paired_difference([0, 0, 1], [0, 1, 1], [0, 0, 1], groups=["a"] * 3)
    assert one_video["ci95"] == [-1, 1] and one_video["difference"] == pytest.approx(1 / 3)
    assert accuracy_interval([True] * 8, list("aaaabbbb")) == wilson_interval(2, 2)
    assert accuracy_interval([True] * 8, ["a"] * 8) == wilson_interval(1, 1)


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (4, 4), (7, 8), (50, 100), (99, 100)])
def test_exact_interval_is_the_binomial_tests(correct, total):
    expected = binomtest(correct, total).proportion_ci(0.95, "exact")
    assert exact_interval(correct, total) == pytest.approx([expected.low, expected.high], abs=1e-6)
