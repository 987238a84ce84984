"""The layer curve finds the layer that holds the action; its closed form and its penalty by hand."""

import numpy as np
import pytest
import torch

from evaluation.heads.closed_form import RIDGE_PENALTIES, ridge_weights
from evaluation.robot.layer_curve import best_layer, layer_curve, predicted, r2_by_number, tail

EPISODES, STEPS = 10, 20


@pytest.fixture
def world():
    """(features of three layers, states, actions) of each episode; layer 5 holds the second number of the action."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(STEPS, 3, generator=draw) for _ in range(EPISODES)]
    hidden = [torch.randn(STEPS, 1, generator=draw) for _ in range(EPISODES)]
    actions = [
        torch.cat([state[:, :1], secret, torch.ones(STEPS, 1)], 1) for state, secret in zip(states, hidden, strict=True)
    ]
    mix = torch.randn(1, 8, generator=draw)
    features = {
        layer: [secret @ mix + noise * torch.randn(STEPS, 8, generator=draw) for secret in hidden]
        for layer, noise in {2: 30.0, 5: 0.05, 7: 3.0}.items()
    }
    return features, states, actions


def test_the_layer_that_holds_the_action_is_found(world):
    curve = layer_curve(*world, held_out=2, progress=False)
    assert [fit.layer for fit in curve] == [None, 2, 5, 7] and best_layer(curve) == 5
    floor, blurred, clear, between = curve
    assert floor.r2_by_action[0] > 0.99 and abs(floor.r2_by_action[1]) < 0.2  # the state holds the first number alone
    assert all(fit.r2_by_action[2] is None for fit in curve)  # constant
    assert clear.r2_by_action[1] > 0.98 and clear.r2 > between.r2 > blurred.r2
    assert clear.r2 == pytest.approx(np.mean(clear.r2_by_action[:2]))


def test_held_out_episodes_are_only_scored(world):
    features, states, actions = world
    features = {2: features[2]}
    other = [*actions[:8], *(torch.randn(STEPS, 3) for _ in range(2))]
    ours, theirs = (layer_curve(features, states, given, 2, False)[1] for given in (actions, other))
    assert ours.penalty == theirs.penalty
    inputs = [torch.cat(pair, 1) for pair in zip(features[2], states, strict=True)]
    parts = torch.cat(inputs[:8]), torch.cat(actions[:8]), torch.cat(inputs[8:])
    guess = predicted(*parts, [ours.penalty])[:, 0]
    for fit, given in ((ours, actions), (theirs, other)):
        wanted = r2_by_number(guess, torch.cat(given[8:]))
        assert fit.r2_by_action[:2] == pytest.approx(wanted[:2])


def test_the_penalty_is_the_best_on_the_last_fifth_of_the_training_episodes(world):
    features, states, actions = world
    for fit in layer_curve(features, states, actions, 2, False)[1:]:
        inputs = [torch.cat(pair, 1) for pair in zip(features[fit.layer], states, strict=True)]
        inner, chosen = 8 - tail(8), slice(8 - tail(8), 8)
        wanted, goal = [], torch.cat(actions[chosen])[:, :2]
        for penalty in RIDGE_PENALTIES:
            guess = predicted(
                torch.cat(inputs[:inner]), torch.cat(actions[:inner]), torch.cat(inputs[chosen]), [penalty]
            )
            spread = torch.cat(actions[:inner])[:, :2].std(0, correction=0)
            wanted.append((((guess[:, 0, :2] - goal) / spread) ** 2).mean().item())
        assert fit.penalty == RIDGE_PENALTIES[int(np.argmin(wanted))]
    noisy = {2: features[2]}
    assert (
        layer_curve(noisy, states, actions, 2, False)[1].penalty
        > layer_curve({5: features[5]}, states, actions, 2, False)[1].penalty
    )


@pytest.mark.parametrize(("count", "dim"), [(30, 8), (10, 40)])
def test_ridge_weights_are_those_of_a_direct_solve(count, dim):
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, dim, generator=draw).double(), torch.randn(count, 3, generator=draw).double() + 2
    x = x - x.mean(0)
    weight, bias = ridge_weights(x.float(), y.float(), [0.01, 1.0])
    for place, penalty in enumerate((0.01, 1.0)):
        wanted = torch.linalg.solve(x.T @ x + count * penalty * torch.eye(dim), x.T @ (y - y.mean(0)))
        torch.testing.assert_close(weight[:, place].double(), wanted, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(bias.double(), y.mean(0), atol=1e-5, rtol=1e-5)


def test_r2_by_hand():
    y = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert r2_by_number(torch.tensor([[0.0, 9.0], [1.0, 9.0]]), y) == [0.5, None]


def test_tails():
    assert [tail(count) for count in (1, 4, 5, 10, 25, 100)] == [1, 1, 1, 2, 5, 20]


def test_bad_input(world):
    features, states, actions = world
    with pytest.raises(ValueError, match="There are 1 training episodes"):
        layer_curve(features, states, actions, 9, False)
    features[5][0][3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        layer_curve(features, states, actions, 2, False)
    still = [torch.ones(STEPS, 2) for _ in actions]
    with pytest.raises(ValueError, match="never vary, so no layer is best; name one"):
        best_layer(layer_curve({2: features[2]}, states, still, 2, False))
