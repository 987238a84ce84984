"""The simple predictors equal a brute-force count, and never look at validation while they are fitted."""

import math
from collections import Counter

import numpy as np
import pytest

from evaluation.predictors import STRENGTHS, Predictors, fit, left_neighbours

K = 5
ALPHA = {"unigram": 0.7, "bigram": 2.0, "previous_frame": 0.3}


@pytest.fixture
def codes():
    rng = np.random.default_rng(0)
    return rng.integers(0, K, (6, 3, 2, 2)), rng.integers(0, K, (4, 3, 2, 2))


def mean_nats(predictors, codes) -> dict[str, float]:
    return {name: float(places.mean()) for name, places in predictors.maps(codes).items()}


def brute_force(train, val) -> dict[str, float]:
    """The same three predictors, token by token, with dictionaries."""

    def tokens(rows):
        """(name, context, code) of every token for every predictor that has a context for it."""
        for row in rows:
            flat = row.reshape(-1).tolist()
            frame = row[0].size
            for i, code in enumerate(flat):
                yield "unigram", None, code
                yield "bigram", flat[i - 1] if i else "start", code
                if i >= frame:
                    yield "previous_frame", flat[i - frame], code

    pairs, contexts = Counter(tokens(train)), Counter((name, context) for name, context, _ in tokens(train))

    def probability(name, context, code):
        prior = 1 / K if name == "unigram" else probability("unigram", None, code)
        return (pairs[name, context, code] + ALPHA[name] * prior) / (contexts[name, context] + ALPHA[name])

    nats = {"unigram": [], "bigram": [], "previous_frame": []}
    for name, context, code in tokens(val):
        nats[name].append(-math.log(probability(name, context, code)))
    for row in val:  # the first frame of `previous_frame` is the bigram's
        flat = row.reshape(-1).tolist()
        for i in range(row[0].size):
            nats["previous_frame"].append(-math.log(probability("bigram", flat[i - 1] if i else "start", flat[i])))
    return {name: sum(values) / len(values) for name, values in nats.items()}


def test_losses_equal_a_brute_force_count(codes):
    train, val = codes
    losses = mean_nats(Predictors(train, K, ALPHA), val)
    assert losses == pytest.approx(brute_force(train, val), rel=1e-12)


@pytest.mark.parametrize("name", Predictors.names)
def test_probabilities_sum_to_one(codes, name):
    """Over all values of the last token, with what stands before it fixed."""
    predictors = Predictors(codes[0], K, ALPHA)
    row = np.repeat(codes[1][:1], K, axis=0)
    row[:, -1, -1, -1] = np.arange(K)
    nats = predictors.nats(name, row)
    # the order of tokens is the predictor's own; all but the last are equal in the K rows and are divided out
    totals = [predictors.nats(name, row[k : k + 1]).sum() for k in range(K)]
    fixed = predictors.nats(name, row[:1]).sum() - _last(predictors, name, row[:1])
    assert np.exp(-(np.array(totals) - fixed)).sum() == pytest.approx(1)
    assert nats.size == row.size


def _last(predictors, name, row):
    table = predictors.tables[name]
    last = row[:, -1:, -1:, -1:]
    context = {"unigram": 0 * last, "bigram": row[:, -1:, -1:, -2:-1], "previous_frame": row[:, -2:-1, -1:, -1:]}[name]
    uniform = np.full(K, 1 / K)
    every = np.arange(K)
    unigram = np.exp(-predictors.tables["unigram"].nats(0 * every, every, uniform, ALPHA["unigram"]))
    return table.nats(context, last, uniform if name == "unigram" else unigram, ALPHA[name])[0]


def test_the_row_starts_after_its_own_context():
    codes = np.arange(8).reshape(1, 2, 2, 2)
    assert left_neighbours(codes, 9).reshape(-1).tolist() == [9, 0, 1, 2, 3, 4, 5, 6]


def test_each_predictor_wins_where_its_context_decides():
    rng = np.random.default_rng(1)
    still = np.repeat(rng.integers(0, K, (300, 1, 2, 2)), 6, axis=1)  # nothing moves
    losses = mean_nats(fit(still[:200], K), still[200:])
    assert losses["previous_frame"] < 0.5 < losses["bigram"] < losses["unigram"] + 0.01
    stairs = ((np.arange(24) + rng.integers(0, K, (300, 1))) % K).reshape(300, 6, 2, 2)  # each token one more
    losses = mean_nats(fit(stairs[:200], K), stairs[200:])
    assert losses["bigram"] < 0.1 and losses["unigram"] == pytest.approx(math.log(K), abs=0.02)


def test_smoothing_is_chosen_on_train_only(codes):
    train, _ = codes
    predictors = fit(train, K)
    assert set(predictors.strengths.values()) <= set(STRENGTHS)
    assert predictors.tables["unigram"].counts.sum() == train.size  # counted again over all rows
    noise = fit(np.random.default_rng(2).integers(0, K, (400, 2, 2, 2)), K)
    assert noise.strengths["bigram"] > 100  # nothing to learn from a neighbour: trust the unigram


def test_unseen_codes_and_images():
    train, val = np.zeros((4, 1, 2, 2), int), np.full((2, 1, 2, 2), 8191)
    losses = mean_nats(fit(train.astype(np.uint16), 8192), val.astype(np.uint16))
    assert all(0 < loss < 30 for loss in losses.values())
    assert losses["previous_frame"] == losses["bigram"]


def test_wrong_input_says_what_to_do(codes):
    with pytest.raises(ValueError, match="two rows"):
        fit(codes[0][:1], K)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        fit(codes[0], 3)
    with pytest.raises(ValueError, match=r"\(N, T, h, w\)"):
        Predictors(codes[0][0], K)
