"""DAgger: the policy drives, the expert labels, and each round trains from scratch on everything."""

import numpy as np
import pytest
from fake_world import FakePolicy, FakeSimulator

from evaluation.robot.dagger import run_dagger
from evaluation.robot.seeds import DAGGER_SEED, TEST_SEED


def test_rounds():
    given, simulators = [], [FakeSimulator() for _ in range(2)]
    first = FakePolicy(gain=-1)

    def train(episodes):
        given.append(list(episodes))
        return FakePolicy(gain=1)

    policy, episodes, rounds = run_dagger(first, [], train, simulators, 2, 6, per_round=3, progress=False)
    assert [len(each) for each in given] == [3, 6] and given[1] == episodes and policy.gain == 1
    assert rounds[0].success == 0 < rounds[1].success  # the present policy drives
    assert rounds[0].observations == sum(len(each.actions) for each in episodes[:3]) == 18
    for each in episodes:
        place, goal = each.environment_states[:, :2], each.environment_states[:, 2:]
        np.testing.assert_allclose(each.actions, np.clip(10 * (goal - place), -1, 1), atol=1e-5)
    away = episodes[0].environment_states
    distance = np.abs(away[:, :2] - away[:, 2:]).max(1)
    assert distance[-1] > distance[0]  # the bad policy went where the expert would not go
    starts = [seed for each in simulators for seed in each.starts]
    assert sorted(starts) == list(range(DAGGER_SEED, DAGGER_SEED + 6)) and max(starts) < TEST_SEED


@pytest.mark.parametrize("first", [DAGGER_SEED - 1, TEST_SEED - 5])
def test_starts_of_others_are_refused(first):
    with pytest.raises(ValueError, match=f"would take 6 starts from seed {first} on; it may take 500000 to 999999"):
        run_dagger(FakePolicy(), [], None, [FakeSimulator()], 2, 5, first_seed=first, per_round=3)


def test_no_rounds():
    with pytest.raises(ValueError, match="DAgger has 0 rounds"):
        run_dagger(FakePolicy(), [], None, [FakeSimulator()], 0, 5)
