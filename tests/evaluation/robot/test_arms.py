"""`toto robot arms`: a whole table, stopped and taken up again, on the same starts; arms that fail are named."""

import dataclasses
import json

import numpy as np
import pytest
from fake_world import FakeSimulator, demonstrate, write_folder
from PIL import Image

from evaluation.robot import arms as command
from evaluation.robot.arms import Table, compare
from evaluation.robot.arms_args import ArmsArgs
from evaluation.robot.arms_results import difference
from evaluation.robot.bounds import ExpertActions, RandomActions
from evaluation.robot.layer_curve import best_layer
from evaluation.robot.results import ArmsResult
from evaluation.robot.rollouts import roll_out
from evaluation.robot.tables import arms_table

STARTS = range(1_000_000, 1_000_004)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("robot") / "episodes", demonstrate(6, 32))


@pytest.fixture(scope="module")
def flags(folder, checkpoint):
    return {"episodes": folder, "model": checkpoint, "arms": ["proprio", "toto"], "seeds": 2} | {
        "test_episodes": len(STARTS),
        "epochs": 2,
        "parallel": 3,
    }


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """(result, folder) of a table that was not stopped."""
    home = tmp_path_factory.mktemp("table")
    arms = ["oracle", "pixels", "untrained", "toto", f"vision:{flags['model']}"]
    args = ArmsArgs(**flags | {"arms": arms, "seeds": 1, "output": str(home / "r.json")})
    return compare(args, "toto robot arms", FakeSimulator, progress=False), home


def without_times(content):
    """A result's JSON without what differs from run to run."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in ("seconds", "latency", "command")}
        return {key: without_times(value) for key, value in kept.items()}
    return [without_times(each) for each in content] if isinstance(content, list) else content


def test_the_table_is_complete(whole, flags):
    result, home = whole
    content = json.loads((home / "r.json").read_text())
    assert ArmsResult.from_json(content) == result
    toto, best = result.arms["toto"], best_layer(result.curves["toto"])
    others = [f"toto, layer {layer}" for layer in sorted({0, 2} - {best})]  # of depth 3: first, middle, best
    assert list(result.arms) == ["oracle", "pixels", "untrained", "toto", *others, f"vision:{flags['model']}"]
    assert toto.layer == best and [result.arms[name].layer for name in others] == sorted({0, 2} - {best})
    assert set(result.curves) == {"untrained", "toto", f"vision:{flags['model']}"}
    assert [fit.layer for fit in result.curves["toto"]] == [None, 0, 1, 2, 3]
    assert result.curves["toto"] != result.curves["untrained"] and result.errors is None
    same = result.arms[f"vision:{flags['model']}"]  # the same model by another name
    assert same.layer == toto.layer and without_times(same.seeds[0].to_json())["episodes"] == [
        each.to_json() for each in toto.seeds[0].episodes
    ]
    every = [result.expert, result.random, *(seed for each in result.arms.values() for seed in each.seeds)]
    assert all([each.seed for each in score.episodes] == list(STARTS) for score in every)
    assert result.expert.success == 1.0 and result.max_steps == -(-3 * max(lengths(flags)) // 2)
    assert toto.versus is None and same.versus.difference == 0 and same.versus.verdict == "no significant difference"
    table = arms_table(result)
    assert all(name[-23:] in table for name in result.arms) and "each seed" in table and "scripted expert" in table
    assert "never succeeded: seed 0" in table or not any(each.failed for each in result.arms.values())
    assert not (home / "r.progress.json").exists()


def lengths(flags):
    return [len(each.actions) for each in demonstrate(6)]


def test_the_pictures(whole):
    result, home = whole
    with Image.open(home / "r.png") as picture:
        assert len(set(picture.convert("RGB").get_flattened_data())) > 50
    videos = result.arms["toto"].seeds[0].videos
    assert videos and all((home / name).stat().st_size for name in videos)
    assert result.arms["oracle"].seeds[0].videos is None  # it sees no frames


class Killed(Exception):
    """Ends a run as a signal does: no arm's failure."""


def test_a_stopped_table_goes_on(flags, tmp_path, monkeypatch):
    args = ArmsArgs(**flags | {"output": str(tmp_path / "whole.json"), "rollout_layers": 2, "videos": 0})
    compare(args, "toto robot arms", FakeSimulator, progress=False)

    run_seed, ran = Table.run_seed, []

    def counted(self, prepared, row, seed, simulators):
        if len(ran) == 3:
            raise Killed
        ran.append((row.name, seed))
        return run_seed(self, prepared, row, seed, simulators)

    monkeypatch.setattr(Table, "run_seed", counted)
    args = dataclasses.replace(args, output=str(tmp_path / "again.json"))
    with pytest.raises(Killed):
        compare(args, "toto robot arms", FakeSimulator, progress=False)
    first, ran[:] = list(ran), []
    assert not (tmp_path / "again.json").exists() and (tmp_path / "again.progress.json").exists()
    with pytest.raises(ValueError, match=r"begun with other settings \(epochs\)"):
        compare(dataclasses.replace(args, epochs=3), "toto robot arms", FakeSimulator, progress=False)
    monkeypatch.setattr(Table, "run_seed", lambda *given: ran.append((given[2].name, given[3])) or run_seed(*given))
    result = compare(args, "toto robot arms", FakeSimulator, progress=False)
    every = [(name, seed) for name in result.arms for seed in range(2)]
    assert sorted(first + ran) == sorted(every) and len(first) == 3
    found = [without_times(json.loads((tmp_path / f"{name}.json").read_text())) for name in ("whole", "again")]
    assert found[0] == found[1]
    assert not (tmp_path / "again.progress.json").exists()


def test_a_finished_table_is_added_to(flags, tmp_path, monkeypatch):
    """Arms, seeds and layers that it lacks are run; what it has is not run again and stays."""
    run_seed, ran = Table.run_seed, []
    monkeypatch.setattr(Table, "run_seed", lambda *given: ran.append((given[2].name, given[3])) or run_seed(*given))
    args = ArmsArgs(**flags | {"output": str(tmp_path / "r.json"), "rollout_layers": 3, "videos": 0, "seeds": 1})
    first = compare(args, "test", FakeSimulator, progress=False)
    had = {name: arm.seeds[0] for name, arm in first.arms.items()}
    assert set(ran) == {(name, 0) for name in had} and len(had) >= 3  # proprio, toto, other layers of toto

    ran.clear()
    more = dataclasses.replace(args, arms=["oracle"], seeds=2, rollout_layers=1)
    result = compare(more, "test", FakeSimulator, progress=False)
    assert list(result.arms) == [*had, "oracle"] and result.seeds["policies"] == 2
    assert sorted(ran) == sorted([*((name, 1) for name in had), ("oracle", 0), ("oracle", 1)])
    assert {name: result.arms[name].seeds[0] for name in had} == had and result.expert == first.expert
    assert not (tmp_path / "r.progress.json").exists()

    ran.clear()
    again = without_times(compare(args, "test", FakeSimulator, progress=False).to_json())
    assert again == without_times(result.to_json()) | {"settings": again["settings"]} and not ran
    with pytest.raises(ValueError, match=r"r\.json was begun with other settings \(epochs\)"):
        compare(dataclasses.replace(args, epochs=3), "test", FakeSimulator, progress=False)
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a table of arms"):
        compare(args, "test", FakeSimulator, progress=False)


def test_an_arm_that_fails_is_named(flags, tmp_path, capsys):
    args = ArmsArgs(**flags | {"arms": ["vision:./nowhere", "proprio"], "output": str(tmp_path / "r.json")})
    result = compare(args, "toto robot arms", FakeSimulator, progress=False)
    assert list(result.arms) == ["proprio"] and "nowhere" in result.errors["vision:./nowhere"]
    assert (
        "vision:./nowhere has no score" in arms_table(result) and "vision:./nowhere failed" in capsys.readouterr().err
    )
    assert (tmp_path / "r.progress.json").exists()  # so that only that arm is left to do
    with pytest.raises(ValueError, match="No arm has a score"):
        alone = dataclasses.replace(args, arms=["vision:./nowhere"], output=str(tmp_path / "alone.json"))
        compare(alone, "test", FakeSimulator, progress=False)


def test_an_arm_may_fail_at_last(flags, tmp_path, monkeypatch):
    """One that fails in its second policy has no score, and the others have theirs."""
    run_seed = Table.run_seed

    def failing(self, prepared, row, seed, simulators):
        if row.arm == "proprio" and seed == 1:
            raise RuntimeError("out of memory")
        return run_seed(self, prepared, row, seed, simulators)

    monkeypatch.setattr(Table, "run_seed", failing)
    args = ArmsArgs(**flags | {"arms": ["proprio", "oracle"], "output": str(tmp_path / "r.json")})
    result = compare(args, "test", FakeSimulator, progress=False)
    assert list(result.arms) == ["oracle"] and result.errors == {"proprio": "out of memory"}
    assert result.model is None and "model" not in Table(args, "test", FakeSimulator, False).done.content["settings"]
    with_toto = Table(dataclasses.replace(args, arms=["oracle", "toto"]), "test", FakeSimulator, False)
    assert with_toto.is_finished("oracle") and not with_toto.is_finished("toto")  # arms may be added
    monkeypatch.setattr(Table, "run_seed", run_seed)
    assert list(compare(args, "test", FakeSimulator, progress=False).arms) == ["proprio", "oracle"]


def test_dagger_and_a_named_layer(flags, tmp_path, capsys):
    changes = {"arms": ["toto"], "layers": "1", "rollout_layers": 1, "seeds": 1, "dagger": 1}
    args = ArmsArgs(**flags | changes | {"output": str(tmp_path / "r.json")})
    result = compare(args, "test", FakeSimulator, progress=True)
    assert result.curves == {} and result.arms["toto"].layer == 1 and len(result.arms["toto"].seeds[0].dagger) == 1
    assert "Policies to train and test: 1, each from 4 starts" in capsys.readouterr().out


def test_arms_are_compared_on_the_same_starts(whole):
    result, _ = whole
    (toto,), (oracle,) = (result.arms[name].seeds for name in ("toto", "oracle"))
    moved = dataclasses.replace(oracle, episodes=oracle.episodes[::-1])
    with pytest.raises(ValueError, match="from other starts"):
        difference([toto], [moved])
    won = [dataclasses.replace(each, success=True) for each in toto.episodes]
    lost = [dataclasses.replace(each, success=each.seed % 2 == 0) for each in toto.episodes]
    versus = difference([dataclasses.replace(toto, episodes=won)], [dataclasses.replace(toto, episodes=lost)])
    assert versus.difference == 0.5


def test_floor_and_ceiling():
    simulators = [FakeSimulator() for _ in range(2)]
    expert = roll_out(ExpertActions(simulators), simulators, range(5), 12, keep_frames=True)
    assert all(each.success for each in expert) and len({each.steps for each in expert}) > 1
    for each in expert:
        place, goal = each.episode.environment_states[:, :2], each.episode.environment_states[:, 2:]
        np.testing.assert_allclose(each.episode.actions, np.clip(10 * (goal - place), -1, 1), atol=1e-5)
    drawn = [roll_out(RandomActions(2, 3), [FakeSimulator() for _ in range(k)], range(5), 4, True) for k in (1, 3)]
    for one, other in zip(*drawn, strict=True):  # however many run side by side
        np.testing.assert_array_equal(one.episode.actions, other.episode.actions)
    flat = np.concatenate([each.episode.actions.ravel() for each in drawn[0]])
    assert flat.min() < -0.5 and flat.max() > 0.5 and len(np.unique(flat)) == len(flat)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"episodes": None}, "--episodes FOLDER is missing"),
        ({"output": "r.txt"}, "ends in .json"),
        ({"arms": ["pixel"]}, "no arm 'pixel'"),
        ({"arms": ["vision:"]}, "no arm 'vision:'"),
        ({"arms": ["proprio", "proprio"]}, "'proprio' twice"),
        ({"arms": []}, "--arms is empty"),
        ({"model": None}, "The arm toto needs --model"),
        ({"layers": "last"}, "--layers is 'last'"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"rollout_layers": 0}, "--rollout_layers is 0"),
        ({"dagger": -1}, "--dagger is -1"),
    ],
)
def test_bad_flags(flags, changes, why):
    with pytest.raises(ValueError, match=why):
        ArmsArgs(**flags | {"output": "r.json"} | changes)


def test_flags_that_have_no_effect(folder):
    with pytest.raises(ValueError, match="--model would have no effect"):
        command.main(["--episodes", folder, "--output", "r.json", "--arms", "proprio", "--model", "m"])
    with pytest.raises(ValueError, match="--rollout_layers would have no effect"):
        command.main(["--episodes", folder, "--output", "r.json", "--arms", "proprio", "--rollout_layers", "2"])


def test_a_real_robot_cannot_be_tested(flags, tmp_path):
    real = write_folder(tmp_path / "real", demonstrate(3, 32), recorded=False)
    args = ArmsArgs(**flags | {"episodes": real, "output": str(tmp_path / "r.json")})
    with pytest.raises(ValueError, match="name it with --task"):
        compare(args, "test", FakeSimulator, progress=False)
