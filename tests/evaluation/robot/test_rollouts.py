"""Lockstep episodes are those of one simulator at a time; the policy acts, the expert only labels."""

import numpy as np
import pytest
from fake_world import FakePolicy, FakeSimulator

from evaluation.robot.rollouts import Clock, roll_out

SEEDS = range(1_000_000, 1_000_007)


def test_lockstep_gives_the_episodes_of_one_at_a_time():
    policy = FakePolicy()
    together = roll_out(policy, [FakeSimulator() for _ in range(3)], SEEDS, 6, keep_frames=True)
    alone = [roll_out(FakePolicy(), [FakeSimulator()], [seed], 6, keep_frames=True)[0] for seed in SEEDS]
    assert [each.seed for each in together] == list(SEEDS)
    assert len({each.steps for each in together}) > 1 and len({each.success for each in together}) == 2
    for mine, its in zip(together, alone, strict=True):
        assert (mine.success, mine.steps) == (its.success, its.steps)
        np.testing.assert_array_equal(mine.episode.actions, its.episode.actions)
        np.testing.assert_array_equal(mine.episode.images, its.episode.images)
        np.testing.assert_array_equal(mine.episode.states, its.episode.states)
    assert sum(policy.sizes) == sum(each.steps for each in together) and policy.kept  # finished ones are left out


def test_an_episode_ends_with_success_or_the_last_step():
    for each in roll_out(FakePolicy(), [FakeSimulator()], SEEDS, 5, keep_frames=True):
        assert len(each.episode.images) == len(each.episode.actions) == each.steps <= 5
        assert each.success or each.steps == 5
        assert each.episode.success == each.success and each.labels is None
    assert roll_out(FakePolicy(), [FakeSimulator()], [3], 5)[0].episode is None


def test_the_expert_labels_and_the_policy_drives():
    (each,) = roll_out(FakePolicy(gain=-1), [FakeSimulator()], [4], 6, label=True)
    environment = each.episode.environment_states
    np.testing.assert_allclose(each.labels, np.clip(10 * (environment[:, 2:] - environment[:, :2]), -1, 1), atol=1e-5)
    moved = np.diff(each.episode.states, axis=0)
    np.testing.assert_allclose(moved, 0.1 * each.episode.actions[:-1], atol=1e-5)
    assert not np.allclose(each.labels, each.episode.actions)


def test_the_clock_splits_the_time():
    clock = Clock()
    rollouts = roll_out(FakePolicy(), [FakeSimulator()], SEEDS, 5, clock=clock)
    assert clock.observations == sum(each.steps for each in rollouts)
    assert clock.rendering > 0 and clock.head > 0 and clock.seeing == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"seeds": []}, "no episodes"), ({"simulators": []}, "no simulator"), ({"max_steps": 0}, "max_steps is 0")],
)
def test_bad_input(changes, why):
    given = {"policy": FakePolicy(), "simulators": [FakeSimulator()], "seeds": [1], "max_steps": 3}
    with pytest.raises(ValueError, match=why):
        roll_out(**given | changes)
