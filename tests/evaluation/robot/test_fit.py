"""Behaviour cloning: the last epoch's network, MVP's schedule, standardised inputs, seeds."""

import dataclasses

import numpy as np
import pytest
import torch

from evaluation.robot import fit as fitting
from evaluation.robot.fit import FitSettings, Samples, fit_policy, new_network, squared_error
from training.engine.optim import learning_rate, make_optimizer


def samples(count=64, seed=0, scale=1.0):
    """Actions that are a linear map of what is seen and of the state."""
    draw = torch.Generator().manual_seed(seed)
    seen, states = torch.randn(count, 6, generator=draw), torch.randn(count, 3, generator=draw)
    actions = 0.2 * torch.stack([seen[:, 0] - states[:, 1], seen[:, 3] + states[:, 0]], 1)
    return Samples(seen, states, (scale * actions).clamp(-abs(scale), abs(scale)))


def fit(train, held_out=None, seed=0, **settings):
    return fit_policy(train, held_out, FitSettings(**{"batch_size": 16} | settings), seed, device="cpu", progress=False)


def test_actions_are_learnt():
    network, losses = fit(samples(), samples(seed=1), epochs=60)
    assert losses[-1].loss < 0.05 * samples().actions.var() and [each.epoch for each in losses] == [20, 40, 60]
    made = network(samples().seen, samples().states)
    assert (made - samples().actions).square().mean() < 0.05 * samples().actions.var()
    assert not network.training


def test_the_network_is_that_of_the_last_epoch():
    train = samples()
    opposite = dataclasses.replace(samples(seed=1), actions=-samples(seed=1).actions)  # the better, the less is learnt
    network, losses = fit(train, opposite, epochs=40, report_every=1, learning_rate=1e-4)
    best = min(each.held_out for each in losses)
    assert losses[-1].held_out > 1.2 * best and losses[0].held_out == best
    assert squared_error(network.train(), opposite) == losses[-1].held_out
    alone, _ = fit(train, None, epochs=40, report_every=1, learning_rate=1e-4)  # held-out samples change nothing
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), alone.parameters(), strict=True))


def test_a_seed_gives_the_same_bits_and_global_generators_stay():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (fit(samples(), seed=seed, epochs=3) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state()) and first[1] == again[1]
    for a, b, c in zip(*(made[0].parameters() for made in (first, again, other)), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_seed_draws_the_order_too(monkeypatch):
    """Of networks that begin alike."""
    monkeypatch.setattr(fitting, "new_network", lambda train, seed: new_network(train, 0))
    first, again, other = (fit(samples(), seed=seed, epochs=1)[0].actor[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_published_numbers():
    settings = FitSettings()
    assert (settings.epochs, settings.batch_size, settings.warmup_epochs) == (400, 128, 40)
    optim = settings.optim(steps_per_epoch=10)
    rates = [learning_rate(step, 4000, optim) for step in (0, 199, 400, 3999)]
    assert rates[1] == pytest.approx(5e-4, rel=0.02) and rates[2] == pytest.approx(1e-3, rel=0.02)
    assert rates[0] < 1e-5 and rates[3] < 1e-6
    groups = make_optimizer(new_network(samples(), 0), optim).param_groups
    decayed = {tuple(p.shape) for group in groups if group["weight_decay"] == 0.01 for p in group["params"]}
    assert all(len(shape) == 2 for shape in decayed) and len(decayed) == 6
    assert {p.ndim for group in groups if group["weight_decay"] == 0 for p in group["params"]} == {1}


def test_first_weights_are_mvps():
    network = new_network(samples(), 0)
    weights = [layer.weight for layer in network.actor if hasattr(layer, "weight")]
    assert [tuple(w.shape) for w in weights] == [(256, 256), (128, 256), (64, 128), (2, 64)]
    for weight, gain in zip(weights, (2**0.5, 2**0.5, 2**0.5, 0.01), strict=True):
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5, rtol=1e-4)


def test_inputs_are_standardised_and_only_actions_beyond_1():
    train = samples()
    moved = Samples(1000 * train.seen + 5, train.states / 1000 - 3, train.actions)
    plain, other = (fit(each, epochs=10)[1][-1].loss for each in (train, moved))
    assert plain == pytest.approx(other, rel=1e-2)
    assert torch.equal(new_network(train, 0).action_std, torch.ones(2))
    wide = samples(scale=50.0)
    network, losses = fit(wide, epochs=60)
    torch.testing.assert_close(network.action_std, wide.actions.std(0, correction=0))
    assert losses[-1].loss < 0.05  # in units of the spread
    assert (network(wide.seen, wide.states) - wide.actions).square().mean() < 0.05 * wide.actions.var()


def test_pixels():
    draw = np.random.default_rng(0)
    bright = draw.integers(0, 2, 32)
    frames = draw.integers(0, 100, (32, 64, 64, 3)) + 100 * bright[:, None, None, None]
    seen = torch.from_numpy(frames.astype(np.uint8)).flatten(1)
    actions = torch.from_numpy(bright.astype(np.float32))[:, None] - 0.5
    network, losses = fit(Samples(seen, torch.zeros(32, 0), actions), epochs=30)
    assert losses[-1].loss < 0.02 and network.body is None
    mean = seen.view(-1, 3).float().mean(0) / 255
    torch.testing.assert_close(network.sight_mean.flatten(), mean)


def test_bad_input():
    with pytest.raises(ValueError, match="nothing to train on"):
        fit(samples(0))
    with pytest.raises(ValueError, match="use a smaller learning rate"):
        fit(samples(), epochs=20, learning_rate=1e30)
