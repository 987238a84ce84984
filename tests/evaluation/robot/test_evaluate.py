"""`toto robot evaluate`: rates and intervals by hand, one sentence for bad input, videos that can be read."""

import json

import numpy as np
import pytest
from fake_world import FakePolicy, FakeSimulator
from scipy.stats import binomtest

from evaluation.robot.evaluate import run_evaluate
from evaluation.robot.evaluate_args import EvaluateArgs
from evaluation.robot.results import EvaluateResult
from evaluation.robot.rollouts import Rollout
from evaluation.robot.scoring import paired_interval, pooled_interval, score_of
from evaluation.robot.tables import evaluate_table


def test_rates_and_intervals_by_hand():
    score = score_of([Rollout(seed, seed < 3, 10 * (seed + 1)) for seed in range(4)])
    assert score.success == 0.75 and score.steps == 20
    z, n, p = 1.959964, 4, 0.75
    centre, half = (p + z * z / 2 / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    assert score.ci95 == pytest.approx([(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)], abs=1e-4)
    assert [each.seed for each in score.episodes] == [0, 1, 2, 3]
    assert score_of([Rollout(0, False, 9)]).steps is None


def test_seeds_that_disagree_widen_the_interval():
    same = np.tile([True] * 10 + [False] * 10, (3, 1))
    apart = np.stack([np.ones(20), np.zeros(20), np.tile([1, 0], 10)])
    (low, high), (below, above) = pooled_interval(same), pooled_interval(apart)
    assert below < low < 0.5 < high < above and below < 0.05 and above > 0.95
    assert pooled_interval(np.ones((3, 5)))[0] == pytest.approx(15 / (15 + 1.959964**2), abs=1e-4)  # never [1, 1]


def test_no_difference_that_the_exact_test_does_not_see():
    for seeds, starts in ((1, 25), (3, 25)):
        for ahead in range(0, 10, 1 if seeds == 1 else 2):
            for behind in (0, 1, 4):
                differences = np.zeros(seeds * starts)
                differences[:ahead], differences[ahead : ahead + behind] = 1, -1
                low, high = paired_interval(differences.reshape(starts, seeds).T)
                assert low <= (ahead - behind) / differences.size <= high and low < high
                exact = binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0
                assert low <= 0 <= high or exact < 0.05, (ahead, behind)
    assert paired_interval(np.ones((3, 25)))[0] > 0.5  # all pairs are ahead: seen
    apart = np.stack([np.ones(25), -np.ones(25), np.ones(25)])
    assert paired_interval(apart)[0] < -0.9  # seeds that disagree


def run(tmp_path, policies, **flags):
    args = EvaluateArgs(policy=list(policies), output=str(tmp_path / "r.json"), **{"episodes": 6} | flags)
    return run_evaluate(args, "toto robot evaluate", policies.get, FakeSimulator)


def test_the_command(tmp_path):
    FakeSimulator.opened = FakeSimulator.closed = 0
    policies = {"good": FakePolicy(), "bad": FakePolicy(gain=-1)}
    result = run(tmp_path, policies, max_steps=6, videos=1, parallel=4)
    assert FakeSimulator.opened == FakeSimulator.closed == 8
    good, bad = result.policies
    assert good.success == np.mean([each.success for each in good.episodes]) > bad.success == 0
    assert [each.seed for each in bad.episodes] == list(range(1_000_000, 1_000_006))
    assert EvaluateResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert "good" in evaluate_table(result) and "0 [0," in evaluate_table(result)
    kinds = [name.split("_")[2] for name in good.videos if name.endswith(".mp4")]
    assert kinds == ["success", "failure"] and all((tmp_path / name).stat().st_size for name in good.videos)
    import av

    with av.open(str(tmp_path / good.videos[0])) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == next(each.steps for each in good.episodes if each.success) and frames[0].max() > 150


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"simulator": {"task": "push", "action_repeat": 2}}, "trained for the task 'push', not 'reach'"),
        ({"action_size": 7}, "has 7 action numbers and the simulator of reach 2"),
        ({"state_size": 3}, "has 3 state numbers"),
    ],
)
def test_a_policy_of_another_robot(tmp_path, facts, why):
    with pytest.raises(ValueError, match=why):
        run(tmp_path, {"good": FakePolicy(), "other": FakePolicy(**facts)})


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"policy": []}, "--policy FOLDER is missing"),
        ({"output": "out.txt"}, "ends in .json"),
        ({"episodes": 0}, "--episodes is 0"),
        ({"videos": -1}, "--videos is -1"),
        ({"first_seed": 3}, "lower seeds are those of demonstrations"),
    ],
)
def test_bad_flags(flags, why):
    with pytest.raises(ValueError, match=why):
        EvaluateArgs(**{"policy": ["p"], "output": "o.json"} | flags)
