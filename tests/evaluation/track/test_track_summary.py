"""Scores of all sequences by hand: intervals over sequences, the best layer and its floors, and a fair choice of it."""

import numpy as np
import pytest

from evaluation.track.results import ObjectScore, SequenceScores
from evaluation.track.summary import baselines, best_layer, interval, layer_scores
from training.scores import bootstrap_interval

NONE = {"j_recall": 0.0, "j_decay": 0.0, "f_recall": 0.0, "f_decay": 0.0}


def sequences(*scores):
    """scores: for each sequence {kind: jf of each object}."""
    return [
        SequenceScores(
            name=str(number),
            frames=5,
            size=[1, 1],
            seconds=0.0,
            scores={kind: [ObjectScore(j=jf - 0.1, f=jf + 0.1, **NONE) for jf in each] for kind, each in one.items()},
        )
        for number, one in enumerate(scores)
    ]


def test_intervals_draw_sequences_with_all_their_objects():
    """Twenty objects of one clip and one of another are two independent clips."""
    found = sequences({"a": [0.9] * 20}, {"a": [0.1]})
    gains = np.array([0.9] * 20 + [0.1])
    assert interval(found, gains) == bootstrap_interval(gains, groups=["0"] * 20 + ["1"]) == [0.1, 0.9]
    low, high = bootstrap_interval(gains)
    assert low > 0.6 and high - low < 0.4
    assert interval(found[:1], gains[:20]) is None


def test_the_best_layer_minus_its_floors_and_the_best_untrained_layer():
    found = sequences(
        {"layer 1": [0.5, 0.5], "layer 2": [0.7, 0.8], "copy": [0.4, 0.4], "untrained 1": [0.3] * 2}
        | {"untrained 2": [0.2, 0.2]},
        {"layer 1": [0.6], "layer 2": [0.6], "copy": [0.7], "untrained 1": [0.6], "untrained 2": [0.2]},
    )
    rows = layer_scores(found, [1, 2], "layer")
    floors = baselines(found, [1, 2])
    assert [row.jf for row in rows] == pytest.approx([1.6 / 3, 2.1 / 3])  # means over objects
    assert (rows[1].j, rows[1].f) == pytest.approx((0.6, 0.8))
    assert floors["untrained"].layer == 1 and floors["untrained"].jf == pytest.approx(0.4)
    best = best_layer(found, rows, floors)
    assert best.layer == 2 and set(best.versus) == {"copy", "untrained"}
    assert best.versus["copy"].difference == pytest.approx((0.3 + 0.4 - 0.1) / 3)
    assert best.versus["untrained"].difference == pytest.approx((0.4 + 0.5 + 0) / 3)


def test_the_layer_of_a_sequence_is_chosen_on_the_others():
    """Each layer is best on its own sequence alone, which therefore must not choose it."""
    scores = [{f"layer {k}": [0.9 if k == number else 0.2 + 0.1 * k] for k in range(3)} for number in range(3)]
    found = sequences(*scores)
    rows = layer_scores(found, [0, 1, 2], "layer")
    # without 0: 0.2, 0.6, 0.65; without 1: 0.55, 0.3, 0.65; without 2: 0.55, 0.6, 0.4
    assert best_layer(found, rows, {}).chosen_on_others.jf == pytest.approx((0.4 + 0.4 + 0.3) / 3)
