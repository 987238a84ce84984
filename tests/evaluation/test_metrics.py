"""Scores equal a count by hand and scikit-learn's; intervals equal published ones and cover what they should."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from evaluation.metrics import (
    METRICS,
    BalancedAccuracy,
    Top1Accuracy,
    confusion_matrix,
    paired_difference,
    unpaired_difference,
    verdict,
)
from training.scores import (
    accuracy_interval,
    bootstrap_interval,
    exact_interval,
    grid_cells,
    grid_l1,
    per_class_accuracy,
    top_accuracy,
    wilson_interval,
)

RNG = np.random.default_rng(0)
TRUE = RNG.choice(5, size=200, p=[0.5, 0.2, 0.1, 0.1, 0.1])
PREDICTED = np.where(RNG.random(200) < 0.6, TRUE, RNG.integers(0, 7, 200))  # two classes that nothing is
OTHER = np.where(RNG.random(200) < 0.3, TRUE, PREDICTED)


def test_metrics_are_a_count_by_hand_and_scikit_learns(recwarn):
    pairs = list(zip(PREDICTED.tolist(), TRUE.tolist(), strict=True))
    recalls = [
        sum(p == c for p, true in pairs if true == c) / sum(true == c for _, true in pairs) for c in set(TRUE.tolist())
    ]
    by_hand = {"accuracy": sum(p == true for p, true in pairs) / 200, "balanced_accuracy": np.mean(recalls)}
    found = {}
    for metric in (Top1Accuracy, BalancedAccuracy):
        found |= metric().compute(predictions=PREDICTED, references=TRUE)
    matrix = confusion_matrix(PREDICTED, TRUE, 7)
    assert found == pytest.approx(by_hand)
    assert {name: METRICS[name](PREDICTED, TRUE) for name in found} == found
    assert not recwarn, "predicted classes that no item has are no cause for a warning"
    assert found["accuracy"] == accuracy_score(TRUE, PREDICTED)
    assert np.array_equal(matrix, [[pairs.count((column, row)) for column in range(7)] for row in range(7)])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(TRUE, PREDICTED))


def test_per_class_accuracy():
    rows = per_class_accuracy(PREDICTED, TRUE, list("abcdef"))
    assert [row["class"] for row in rows] == list("abcdef") and sum(row["n"] for row in rows) == 200
    matrix = sklearn_confusion_matrix(TRUE, PREDICTED)
    for number, row in enumerate(rows[:5]):
        assert row["accuracy"] == pytest.approx(matrix[number, number] / matrix[number].sum())
        assert row["ci95"] == wilson_interval(int(matrix[number, number]), int(matrix[number].sum()))
    assert rows[5] == {"class": "f", "n": 0, "accuracy": None, "ci95": None}


def test_classes_out_of_range_are_one_sentence():
    with pytest.raises(ValueError, match="Class 4 is not one of the 4 classes 0 to 3; check the labels"):
        per_class_accuracy(PREDICTED, TRUE, list("abcd"))
    with pytest.raises(ValueError, match="Class -1 is not one of the 2 classes"):
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
    result = paired_difference(OTHER, PREDICTED, TRUE)
    gain = (OTHER == TRUE).astype(float) - (PREDICTED == TRUE)
    resampled = np.array([gain[RNG.integers(0, 200, 200)].mean() for _ in range(4000)])
    assert result["difference"] == pytest.approx(gain.mean())
    assert result["ci95"] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.01)
    each = paired_difference(OTHER, PREDICTED, TRUE, groups=np.arange(200), samples=4000)
    assert each["difference"] == result["difference"] and each["ci95"] == pytest.approx(result["ci95"], abs=0.01)


def test_equal_predictors_do_not_differ():
    assert paired_difference(PREDICTED, PREDICTED, TRUE) == {"difference": 0, "ci95": [0, 0]}


def test_a_balanced_score_is_resampled_within_its_classes():
    members = [np.flatnonzero(number == TRUE) for number in range(5)]
    resamples = (np.concatenate([RNG.choice(rows, len(rows)) for rows in members]) for _ in range(600))
    score = METRICS["balanced_accuracy"]
    values = [score(OTHER[rows], TRUE[rows]) - score(PREDICTED[rows], TRUE[rows]) for rows in resamples]
    result = paired_difference(OTHER, PREDICTED, TRUE, metric="balanced_accuracy")
    assert result["difference"] == score(OTHER, TRUE) - score(PREDICTED, TRUE)
    assert result["ci95"] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.015)


def test_how_many_items_a_class_has_is_given():
    """Each class is all right or all wrong, so only how many items a class has could vary, and that is given."""
    classes = np.repeat([0, 1, 2, 3], [50, 3, 2, 1])
    right = classes % 2
    assert bootstrap_interval(right, classes) == [0.5, 0.5]
    low, high = bootstrap_interval(right, classes, groups=range(56))  # items of whatever class
    assert low < 0.4 and high > 0.6


def test_a_balanced_score_of_whole_groups_is_a_bootstrap_by_hand():
    groups = RNG.integers(0, 25, 200)
    rows = [np.flatnonzero(groups == group) for group in range(25)]
    draws = [np.concatenate([rows[k] for k in RNG.integers(0, 25, 25)]) for _ in range(600)]
    expected = np.percentile([METRICS["balanced_accuracy"](PREDICTED[d], TRUE[d]) for d in draws], [2.5, 97.5])
    assert bootstrap_interval(PREDICTED == TRUE, TRUE, groups) == pytest.approx(expected, abs=0.015)


def test_the_interval_of_accuracy_is_about_wilsons():
    low, high = bootstrap_interval(PREDICTED == TRUE)
    assert [low, high] == pytest.approx(wilson_interval(int((PREDICTED == TRUE).sum()), 200), abs=0.015)


def test_whole_groups_are_resampled():
    # 20 recordings of 10 clips, each all right or all wrong: ten times fewer independent items than clips
    right = np.repeat(np.arange(20) % 2, 10)
    groups = np.repeat([f"recording {i}" for i in range(20)], 10)
    width = np.ptp(bootstrap_interval(right, groups=groups))
    assert width == pytest.approx(np.ptp(bootstrap_interval(right[::10])), abs=0.06)
    assert width > 2.5 * np.ptp(bootstrap_interval(right))


@pytest.mark.parametrize("groups", [["a"] * 200, ["a", "b"]])
def test_groups_that_cannot_be_resampled(groups):
    with pytest.raises(ValueError, match="at least two groups"):
        bootstrap_interval(PREDICTED == TRUE, groups=groups)


def test_unpaired_difference_known_values():
    # Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80
    a, b = wilson_interval(56, 70), wilson_interval(48, 80)
    result = unpaired_difference(56 / 70, a, 48 / 80, b)
    assert result["difference"] == pytest.approx(0.2)
    assert result["ci95"] == pytest.approx([0.0524, 0.3339], abs=1e-4)


def test_unlike_lengths_are_one_sentence():
    with pytest.raises(ValueError, match="pass both for the same items"):
        paired_difference(PREDICTED[:3], PREDICTED, TRUE)


@pytest.mark.parametrize(
    "ci95, says",
    [
        ([0.01, 0.2], "above"),
        ([-0.2, -0.01], "below"),
        ([-0.1, 0.2], "no significant difference"),
        ([0, 0], "no significant difference"),
    ],
)
def test_what_an_interval_says(ci95, says):
    assert verdict(ci95) == says


def test_clips_of_one_video_are_not_independent_items():
    right = np.repeat(np.random.default_rng(0).random(50) < 0.6, 8)
    alone, together = (accuracy_interval(right, groups) for groups in (range(400), np.repeat(range(50), 8)))
    assert alone == wilson_interval(int(right.sum()), 400)
    width = [high - low for low, high in (alone, together)]
    assert 2 < width[1] / width[0] < 4  # eight clips that are all alike: about the root of eight


def test_intervals_of_few_do_not_collapse():
    """Exact where few items differ: six against none is the least that is sure, as McNemar's exact test has it."""
    references = np.zeros(300, int)
    for only_a, only_b, says in (
        (4, 0, "no significant difference"),
        (5, 0, "no significant difference"),
        (6, 0, "above"),
        (7, 1, "no significant difference"),
    ):
        a, b = references.copy(), references.copy()
        b[:only_a], a[only_a : only_a + only_b] = 1, 1
        found = paired_difference(a, b, references)
        assert verdict(found["ci95"]) == says, (only_a, only_b)
        assert found["ci95"][0] <= found["difference"] <= found["ci95"][1]
    videos = np.repeat(np.arange(100), 2)
    for ahead, says in ((4, "no significant difference"), (8, "above")):  # of a hundred videos of two clips
        b = (videos < ahead).astype(int)
        assert verdict(paired_difference(0 * b, b, 0 * b, groups=videos)["ci95"]) == says
    one_video = paired_difference([0, 0, 1], [0, 1, 1], [0, 0, 1], groups=["a"] * 3)
    assert one_video["ci95"] == [-1, 1] and one_video["difference"] == pytest.approx(1 / 3)
    assert accuracy_interval([True] * 8, list("aaaabbbb")) == wilson_interval(2, 2)
    assert accuracy_interval([True] * 8, ["a"] * 8) == wilson_interval(1, 1)
    assert accuracy_interval([True] * 5 + [False] * 3, ["a"] * 8) == [0, 1]


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (4, 4), (7, 8), (50, 100), (99, 100)])
def test_exact_interval_leaves_a_tail_of_two_and_a_half_percent(correct, total):
    def tail(p, counts):
        return sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in counts)

    low, high = exact_interval(correct, total)
    assert low == 0 if correct == 0 else tail(low, range(correct, total + 1)) == pytest.approx(0.025, rel=1e-4)
    assert high == 1 if correct == total else tail(high, range(correct + 1)) == pytest.approx(0.025, rel=1e-4)


def test_a_wilson_interval_ends_where_the_score_test_does():
    for correct, total in ((0, 7), (3, 9), (81, 263), (40, 40)):
        for bound in wilson_interval(correct, total):
            if 0 < bound < 1:
                z = (correct / total - bound) / math.sqrt(bound * (1 - bound) / total)
                assert abs(z) == pytest.approx(1.959964, abs=1e-5)


def test_cells_of_a_grid():
    cells = grid_cells(["-3,-3", "2,-3", "-3,2"])
    assert cells.tolist() == [[-3, -3], [2, -3], [-3, 2]]
    assert grid_l1([0, 1, 2], [0, 0, 1], cells) == pytest.approx((0 + 5 + 10) / 3)
    for names in ([], ["cat", "dog"], ["1,2", "3"], ["1.5,2"]):
        assert grid_cells(names) is None


def test_top_accuracy_is_a_count_by_hand():
    scores = np.random.default_rng(1).random((50, 9))
    true = np.random.default_rng(2).integers(0, 9, 50)
    for k in (1, 5):
        by_hand = [(row > row[label]).sum() < k for row, label in zip(scores, true, strict=True)]
        assert top_accuracy(scores, true, k) == pytest.approx(np.mean(by_hand))
    assert top_accuracy(np.zeros((2, 9)), [4, 5]) == 0.5  # of equal scores the lower number counts first
