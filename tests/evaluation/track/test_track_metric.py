"""J, F and their statistics: the official evaluation's numbers to the last bit, and values known by hand."""

import numpy as np
import pytest

from evaluation.track import metric
from evaluation.track.metric import Truth, statistics


def blob(shape, centre, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).astype(np.uint8)


def hard_pairs():
    """(name, true numbers, predicted numbers) of one to three objects."""
    rng = np.random.default_rng(0)
    shape = (61, 83)
    empty, full = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    one, corner, edge = empty.copy(), empty.copy(), empty.copy()
    one[30, 40], corner[-1, -1], edge[:, -3:] = 1, 1, 1
    disc = blob(shape, (30, 40), 14)
    named = {"empty": empty, "full": full, "one pixel": one, "corner": corner, "edge": edge, "disc": disc}
    named["shifted"], named["noise"] = np.roll(disc, (2, 5), (0, 1)), rng.integers(0, 2, shape).astype(np.uint8)
    named["lines"] = (np.arange(shape[1]) % 2 + 0 * np.arange(shape[0])[:, None]).astype(np.uint8)
    for a, true in named.items():
        for b, found in named.items():
            yield f"{a} / {b}", true, found
    many = np.where(disc, 1, 0) + 2 * blob(shape, (10, 10), 9) + 3 * blob(shape, (55, 80), 12)
    swapped = np.array([0, 2, 1, 3])[many]
    yield "swapped", many.astype(np.uint8), swapped.astype(np.uint8)
    for _ in range(8):
        size = tuple(rng.integers(2, 140, 2))
        yield str(size), *(rng.integers(0, 4, size).astype(np.uint8) for _ in range(2))
    large = (480, 854)  # the tolerance is 8 pixels
    yield "large", blob(large, (200, 300), 90), blob(large, (210, 297), 84)


def test_scores_equal_the_official_ones_to_the_last_bit():
    official = pytest.importorskip("segmetric.metrics", reason="the PyPI package esdft-segmetric is not installed")
    for name, true, found in hard_pairs():
        objects = max(1, int(true.max()))
        j, f = Truth.of(true, objects).score(found)
        for number in range(objects):
            pair = true == number + 1, found == number + 1
            assert j[number] == official.db_eval_iou(*pair), name
            assert f[number] == official.db_eval_boundary(*pair), name


def test_statistics_equal_the_official_ones_to_the_last_bit():
    official = pytest.importorskip("segmetric.utils", reason="the PyPI package esdft-segmetric is not installed")
    rng = np.random.default_rng(1)
    for length in (1, 2, 3, 4, 5, 38, 77, 104, 255):
        values = rng.random(length).round(2)
        found = statistics(values)
        assert (found.mean, found.recall, found.decay) == official.db_statistics(values), length


def test_known_scores():
    shape = (100, 100)  # the tolerance is 2 pixels
    assert metric.tolerance(shape) == 2 and metric.tolerance((480, 854)) == 8 and metric.tolerance((256, 456)) == 5
    square = np.zeros(shape, np.uint8)
    square[20:60, 20:60] = 1
    truth = Truth.of(square, 1)
    assert truth.score(square) == ([1.0], [1.0])
    assert truth.score(0 * square) == ([0.0], [0.0])
    moved = np.roll(square, 2, 1)
    assert truth.score(moved) == ([38 / 42], [1.0])  # all outlines are within the tolerance
    assert truth.score(np.roll(square, 40, 0))[0] == [0.0]
    assert truth.score(2 * square) == ([0.0], [0.0])  # the number of another object
    nothing = Truth.of(0 * square, 1)
    assert nothing.score(0 * square) == ([1.0], [1.0]) and nothing.score(square) == ([0.0], [0.0])


def test_void_is_background():
    true = np.zeros((40, 40), np.uint8)
    true[10:20, 10:20], true[20:30, 10:20] = 1, metric.VOID
    found = np.where(true == 1, 1, 0).astype(np.uint8)
    assert Truth.of(true, 1).score(found) == ([1.0], [1.0])
    found[20:30, 10:20] = 1
    assert Truth.of(true, 1).score(found)[0] == [0.5]


def test_statistics_by_hand():
    falling = statistics([1.0, 1.0, 0.6, 0.5, 0.1])  # bins share a frame: 0..1 and 3..4
    assert falling.mean == pytest.approx(0.64) and falling.recall == 0.6 and falling.decay == pytest.approx(0.7)
    long = statistics(np.linspace(1, 0, 1001))  # beyond 8 bits
    assert long.decay == pytest.approx(0.75)
