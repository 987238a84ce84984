"""`toto robot train`: from a folder of episodes to a policy that acts, by each arm; one sentence for bad input."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from fake_world import FakeSimulator, demonstrate, write_folder
from test_episodes import rows, table, write_v2, write_v3

from evaluation.robot.evaluate import run_evaluate
from evaluation.robot.evaluate_args import EvaluateArgs
from evaluation.robot.layer_curve import best_layer
from evaluation.robot.policy import Policy
from evaluation.robot.rollouts import roll_out
from evaluation.robot.sight import Frozen, open_sight, watch
from evaluation.robot.train import main, max_steps_of, seen_of, sight_of, train, train_policy
from evaluation.robot.train_args import TrainArgs

FACTS = {"camera": "above", "fps": 10, "state_names": ["x", "y"], "action_names": ["dx", "dy"], "command": "test"}


def flags(**given):
    return TrainArgs(**{"episodes": "e", "output": "o", "epochs": 4, "arm": "proprio"} | given)


def learn(args, episodes, **given):
    return train_policy(args, episodes, progress=False, **FACTS | given)


def same_weights(a, b):
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def demonstrations():
    return demonstrate(10, 32)


@pytest.fixture(scope="module")
def folder(demonstrations, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("robot") / "episodes", demonstrations)


def test_a_folder_becomes_a_policy_that_evaluate_takes(folder, demonstrations, checkpoint, tmp_path, capsys):
    output = str(tmp_path / "policies" / "reach")
    main(["--episodes", folder, "--output", output, "--model", checkpoint, "--epochs", "3", "--seed", "4"])
    printed = capsys.readouterr().out
    assert "R^2 of" in printed and "10 demonstrations" in printed and f"wrote {output}" in printed
    policy = Policy.load(output)
    config, training = policy.config, policy.config.training
    assert config.simulator == {"task": "reach", "action_repeat": 2} and config.task == "reach"
    assert (config.arm, config.model, config.camera, config.resolution, config.fps) == (
        "toto",
        checkpoint,
        "above",
        32,
        10,
    )
    assert config.action_names == ["dx", "dy"] and config.clipped and config.sight_size == 16 * 32
    assert [fit.layer for fit in policy.curve] == [None, 0, 1, 2, 3] and config.layer == best_layer(policy.curve)
    assert training["trained_on"] == folder and training["demonstrations"] == 10 and training["held_out"] == 2
    lengths = [len(each.actions) for each in demonstrations]
    assert training["observations"] == sum(lengths[:8]) and training["longest"] == max(lengths)
    assert training["settings"]["seed"] == 4 and [each["epoch"] for each in training["losses"]] == [3]

    made = []

    def opened(task, **view):
        made.append((task, view))
        return FakeSimulator(task, **view)

    args = EvaluateArgs(policy=[output], output=str(tmp_path / "r.json"), episodes=3)
    result = run_evaluate(args, "test", Policy.load, opened)
    assert made[0] == ("reach", {"resolution": 32, "camera": "above", "action_repeat": 2})
    assert result.task == "reach" and result.max_steps == max_steps_of(config) == -(-3 * max(lengths) // 2)
    assert max(each.steps for each in result.policies[0].episodes) <= result.max_steps


def test_the_oracle_reaches_what_proprioception_cannot(demonstrations):
    episodes = demonstrate(30)
    scores = {}
    for arm in ("oracle", "proprio"):
        policy = learn(flags(arm=arm, epochs=150, batch_size=32), episodes)
        assert policy.config.environment_size == (4 if arm == "oracle" else None) and policy.config.camera is None
        rollouts = roll_out(policy, [FakeSimulator() for _ in range(8)], range(1_000_000, 1_000_016), 15)
        scores[arm] = np.mean([each.success for each in rollouts])
    assert scores["oracle"] >= 0.75 > 0.4 > scores["proprio"]


def test_pixels_and_an_untrained_model(demonstrations, checkpoint, tmp_path):
    pixels = learn(flags(arm="pixels"), demonstrations)
    assert (pixels.config.sight_size, pixels.config.model, pixels.config.layer) == (64 * 64 * 3, None, None)
    untrained = learn(flags(arm="untrained", model=checkpoint, layer="2", sight_seed=3), demonstrations)
    trained = learn(flags(arm="toto", model=checkpoint, layer="2"), demonstrations)
    assert untrained.config.sight_seed == 3 and untrained.config.fingerprint != trained.config.fingerprint
    one = demonstrations[0]
    for name, policy in {"pixels": pixels, "untrained": untrained, "trained": trained}.items():
        policy.save(tmp_path / name)
        again = Policy.load(tmp_path / name)
        policy.reset()
        for t in range(2):
            given = one.images[t : t + 1], one.states[t : t + 1]
            assert np.array_equal(policy.act(*given), again.act(*given))


def test_a_seed_gives_the_same_bits(demonstrations):
    first, again, other = (learn(flags(arm="pixels", seed=seed), demonstrations) for seed in (1, 1, 2))
    assert same_weights(first, again) and not same_weights(first, other)
    assert first.config.training["losses"] == again.config.training["losses"]


def test_the_last_fifth_is_not_learnt_and_more_episodes_are(demonstrations):
    changed = [dataclasses.replace(each, actions=-each.actions) for each in demonstrations]
    plain = learn(flags(), demonstrations)
    assert same_weights(plain, learn(flags(), [*demonstrations[:8], *changed[8:]]))
    assert not same_weights(plain, learn(flags(), [*demonstrations[:7], changed[7], *demonstrations[8:]]))
    added = learn(flags(), demonstrations, more=changed[:1])
    assert not same_weights(plain, added) and added.config.training["dagger_episodes"] == 1
    extra = len(changed[0].actions)
    assert added.config.training["observations"] == plain.config.training["observations"] + extra
    alone = learn(flags(), demonstrations[:1])
    assert alone.config.training["held_out"] == 0 and alone.config.training["losses"][-1]["held_out"] is None


def test_features_that_are_given_are_not_made_again(demonstrations, checkpoint, monkeypatch):
    args = flags(arm="toto", model=checkpoint, layer="1")
    sight = sight_of(args)
    seen = watch(sight, demonstrations)
    plain = learn(args, demonstrations, sight=sight)
    monkeypatch.setattr(Frozen, "see_layers", None)
    assert same_weights(plain, learn(args, demonstrations, sight=sight, features=seen))
    with pytest.raises(ValueError, match="not those of these episodes"):
        learn(args, demonstrations, sight=sight, features=seen[:-1])


def test_dagger_looks_at_each_frame_once(folder, demonstrations, checkpoint, tmp_path, monkeypatch):
    looked, see = [], Frozen.see_layers
    monkeypatch.setattr(
        Frozen, "see_layers", lambda self, images, layers: looked.append(len(images)) or see(self, images, layers)
    )
    FakeSimulator.opened = FakeSimulator.closed = 0
    args = flags(episodes=folder, output=str(tmp_path / "p"), arm="toto", model=checkpoint, layer="1", dagger=2)
    policy = train(args, "test", FakeSimulator, per_round=3, progress=False)
    training = Policy.load(tmp_path / "p").config.training
    assert training["dagger_episodes"] == 6 and training["held_out"] == 2 and len(training["dagger"]) == 2
    added = sum(each["observations"] for each in training["dagger"])
    lengths = [len(each.actions) for each in demonstrations]
    assert training["observations"] == sum(lengths[:8]) + added and training["longest"] == max(lengths)
    # once in training, once by the policy that drives; one black frame finds the size of the sight
    assert sum(looked[:-1]) == sum(lengths) + 2 * added + 1
    assert FakeSimulator.opened == FakeSimulator.closed == 3 and policy.config.simulator["task"] == "reach"


def test_blind_policies_look_at_small_frames(demonstrations, folder, tmp_path):
    train(flags(episodes=folder, output=str(tmp_path / "p")), "test", progress=False)
    made = []

    def opened(task, **view):
        made.append(view)
        return FakeSimulator(task, **view)

    run_evaluate(EvaluateArgs(policy=[str(tmp_path / "p")], output="r.json", episodes=1), "t", Policy.load, opened)
    assert made == [{"resolution": 16, "action_repeat": 2}]


def test_a_real_robot_needs_no_simulator(demonstrations, tmp_path, monkeypatch):
    for name in ("mujoco", "metaworld", "gymnasium"):
        monkeypatch.setitem(sys.modules, name, None)
    real = write_folder(tmp_path / "real", demonstrations, recorded=False, environment=False)
    policy = train(flags(episodes=real, output=str(tmp_path / "p"), arm="pixels"), "test", progress=False)
    assert policy.config.simulator is None and policy.config.resolution == 64
    args = EvaluateArgs(policy=[str(tmp_path / "p")], output="r.json")
    with pytest.raises(ValueError, match="trained on a real robot"):
        run_evaluate(args, "test", Policy.load, FakeSimulator)
    with pytest.raises(ValueError, match="--dagger needs the simulator's task"):
        train(flags(episodes=real, output=str(tmp_path / "q"), dagger=1), "test")
    with pytest.raises(ValueError, match="--arm oracle reads"):
        train(flags(episodes=real, output=str(tmp_path / "q"), arm="oracle"), "test")
    named = train(flags(episodes=real, output=str(tmp_path / "q"), task="reach"), "test", progress=False)
    assert named.config.simulator == {"task": "reach", "action_repeat": 8}  # 10 a second
    with pytest.raises(ValueError, match=r"robots\]"):
        train(flags(episodes=real, output=str(tmp_path / "r"), task="reach", dagger=1), "test", progress=False)
    assert not (tmp_path / "r").exists()


def test_folders_of_other_tools_train_a_policy(checkpoint, tmp_path):
    def learnt(folder, name, **given):
        return train(flags(episodes=folder, output=str(tmp_path / name), **given), "test", progress=False)

    old, new = str(write_v2(tmp_path / "v2")), str(write_v3(tmp_path / "v3"))
    assert same_weights(learnt(old, "a"), learnt(new, "b"))
    for name, folder in {"c": old, "d": new}.items():
        config = learnt(folder, name, arm="toto", model=checkpoint).config
        assert (config.camera, config.resolution, config.fps, config.simulator) == ("front", 32, 10, None)
        assert config.state_names == ["shoulder", "elbow"] and config.task == "task 0; task 1" and not config.clipped
        acting = Policy.load(tmp_path / name)
        assert acting.act(np.zeros((1, 480, 640, 3), np.uint8), np.zeros((1, 2))).shape == (1, 3)


def test_numbers_that_are_not_finite_are_named(tmp_path):
    folder = write_v2(tmp_path / "arm")
    bad = rows(1, 5) | {"observation.state": [[0.0, 0.0], [float("nan"), 0.0], [0.0, 0.0]]}
    table(folder / "data/chunk-000/episode_000001.parquet", bad)
    with pytest.raises(ValueError, match=r"observation\.state has a value that is not finite in row 1 of episode 1"):
        train(flags(episodes=str(folder), output=str(tmp_path / "p")), "test")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"episodes": None}, "--episodes FOLDER is missing"),
        ({"output": None}, "--output FOLDER is missing"),
        ({"layer": "deep"}, "--layer is 'deep'; it must be a layer number or auto"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"weight_decay": -1.0}, "--weight_decay is -1"),
        ({"dagger": -1}, "--dagger is -1"),
    ],
)
def test_bad_flags(given, why):
    with pytest.raises(ValueError, match=why):
        flags(**given)


def test_bad_input_is_one_sentence(folder, demonstrations, checkpoint, tmp_path):
    def refused(why, episodes=folder, **given):
        with pytest.raises(ValueError, match=why) as caught:
            train(flags(episodes=str(episodes), output=str(tmp_path / "p"), **given), "test", progress=False)
        assert "\n" not in str(caught.value) and not (tmp_path / "p").exists()

    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there exists; name another --output"):
        train(flags(episodes=folder, output=str(tmp_path / "there")), "test")
    refused("There is no arm 'eyes'; choose from toto, untrained", arm="eyes")
    refused("The arm toto needs --model", arm="toto")
    refused(r"has layers 0 \(embeddings\) to 3, not 9", arm="toto", model=checkpoint, layer="9")
    refused("reads at most 4 frames", arm="toto", model=checkpoint, context_frames=9)
    refused("no camera 'wrist'; it has above", arm="pixels", camera="wrist")
    refused("--task is push", task="push")
    refused("is not a folder of episodes", episodes=tmp_path)
    few = write_folder(tmp_path / "few", demonstrations[:2])
    refused("--layer auto needs at least 3 demonstrations", episodes=few, arm="toto", model=checkpoint)
    file = tmp_path / "few/meta/info.json"
    info = json.loads(file.read_text())
    info["features"]["observation.images.side"] = info["features"]["observation.images.above"]
    file.write_text(json.dumps(info))
    refused("has 2 cameras .above, side.; name one of them with --camera", episodes=few, arm="pixels")
    del info["features"]["observation.images.side"], info["features"]["observation.images.above"]
    file.write_text(json.dumps(info))
    refused("has 0 cameras .none.", episodes=few, arm="pixels")
    with pytest.raises(ValueError, match="--layer would have no effect on --arm proprio"):
        main(["--episodes", folder, "--output", "o", "--arm", "proprio", "--layer", "3"])


def test_episodes_of_other_robots(demonstrations):
    one = demonstrations[0]
    nan = dataclasses.replace(one, states=np.where(np.arange(2) == 1, np.nan, one.states).astype(np.float32))
    with pytest.raises(ValueError, match="states of episode 1 has a number that is not finite"):
        learn(flags(), [one, nan])
    long = dataclasses.replace(one, actions=np.tile(one.actions, 2))
    with pytest.raises(ValueError, match="actions of episode 1 has the shape"):
        learn(flags(), [one, long])
    short = dataclasses.replace(one, actions=one.actions[:-1])
    with pytest.raises(ValueError, match=r"actions\."):
        learn(flags(), [one, short])
    with pytest.raises(ValueError, match="no episodes"):
        learn(flags(), [])


def test_what_blind_arms_see(demonstrations):
    seen = seen_of("oracle", open_sight("oracle"), demonstrations)
    assert all(np.array_equal(a, b.environment_states) for a, b in zip(seen, demonstrations, strict=True))
    assert seen_of("proprio", open_sight("proprio"), demonstrations)[0].shape == (len(demonstrations[0].actions), 0)
