"""Intervals of success over policy seeds and starts, by hand."""

import numpy as np
import pytest

from evaluation.robot.scoring import paired_interval, pooled_interval
from training.scores import exact_interval, wilson_interval


def test_seeds_that_differ_widen_the_interval():
    """One policy of three always succeeds: of three others, none does with probability (2/3)^3, 30 %."""
    success = np.zeros((3, 100), int)
    success[0] = 1
    assert pooled_interval(success) == [0, 1] and paired_interval(success) == [0, 1], "not above 1 by rounding"
    assert paired_interval(-success) == [-1, 0]


def test_starts_that_differ_widen_it_too():
    """All policies succeed from the same third of six starts."""
    success = np.tile([1, 1, 0, 0, 0, 0], (100, 1))
    low, high = pooled_interval(success)
    assert low == 0 and 0.65 < high < 0.9
    assert wilson_interval(200, 600)[0] > 0.29, "of 600 episodes that were independent"


def test_few_pairs_that_differ_are_no_certain_difference():
    """Four of forty pairs, all for one arm: McNemar's exact test."""
    differences = np.zeros((1, 40), int)
    differences[0, :4] = 1
    low, high = paired_interval(differences)
    share = exact_interval(4, 4)[0]
    assert low == pytest.approx(0.1 * (2 * share - 1)) and low < 0 < 0.1 < high
    equal = paired_interval(np.zeros((1, 40), int))
    assert equal[0] == -equal[1] == pytest.approx(-exact_interval(0, 40)[1])
