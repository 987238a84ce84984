"""A policy's folder and its two faces: the same actions to the bit, batches, bad observations."""

import json
import shutil

import numpy as np
import pytest
import torch
from fake_world import demonstrate
from safetensors.torch import load_file, save_file

from evaluation.robot.policy import CONFIG, WEIGHTS, Policy, TotoPolicy
from evaluation.robot.sight import fitted
from evaluation.robot.train import train_policy
from evaluation.robot.train_args import TrainArgs

FACTS = {"camera": "above", "fps": 10, "state_names": ["x", "y"], "action_names": None, "command": "test"}


@pytest.fixture(scope="module")
def episodes():
    return demonstrate(6, 32)


def learn(episodes, **flags):
    args = TrainArgs(**{"episodes": "e", "output": "o", "epochs": 3} | flags)
    return train_policy(args, episodes, progress=False, **FACTS)


@pytest.fixture(scope="module")
def policy(episodes, checkpoint):
    """Reads the last two frames of a Toto, with a layer curve."""
    return learn(episodes, arm="toto", model=checkpoint, context_frames=2)


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies") / "deep" / "reach"
    policy.save(folder)
    return folder


def acts(policy, episode, count=4):
    policy.reset()
    return np.stack([policy.act(episode.images[t : t + 1], episode.states[t : t + 1])[0] for t in range(count)])


def test_a_saved_policy_acts_the_same_to_the_bit(policy, saved, episodes):
    again = Policy.load(saved)
    assert again.config == policy.config and again.curve == policy.curve is not None
    assert np.array_equal(acts(policy, episodes[0]), acts(again, episodes[0]))
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "layers.json", "model.safetensors"]
    assert [file.name for file in saved.parent.iterdir()] == ["reach"]  # nothing half-written
    with pytest.raises(ValueError, match="reach exists; name another --output, or delete it"):
        policy.save(saved)


def test_a_changed_backbone_is_refused(policy, saved, checkpoint, episodes, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    assert np.array_equal(acts(Policy.load(saved, model=str(moved)), episodes[0]), acts(policy, episodes[0]))
    weights = load_file(moved / WEIGHTS)
    name = next(name for name in weights if "layers.0" in name)
    weights[name] = weights[name] + 1e-3
    save_file(weights, moved / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"are not those that the policy .* was trained with"):
        Policy.load(saved, model=str(moved))


def test_a_vision_arm_may_move_too(episodes, checkpoint, tmp_path):
    vision = learn(episodes, arm="vision:" + checkpoint, layer="1")
    assert vision.config.model == checkpoint
    vision.save(tmp_path / "p")
    shutil.copytree(checkpoint, tmp_path / "moved")
    moved = Policy.load(tmp_path / "p", model=str(tmp_path / "moved"))
    assert moved.sight.backbone.name.endswith("moved")
    assert np.array_equal(acts(moved, episodes[0]), acts(vision, episodes[0]))


def test_a_batch_acts_as_its_rows(policy, episodes):
    images = np.stack([each.images[:4] for each in episodes])
    states = np.stack([each.states[:4] for each in episodes])
    policy.reset(6)
    together = [policy.act(images[:, t], states[:, t]) for t in range(2)]
    policy.keep([4, 1])
    together += [policy.act(images[[4, 1], t], states[[4, 1], t]) for t in (2, 3)]
    for place, row in enumerate((4, 1)):
        alone = acts(policy, episodes[row])
        mixed = [together[0][row], together[1][row], together[2][place], together[3][place]]
        np.testing.assert_allclose(mixed, alone, atol=1e-5)


def test_the_past_counts_until_reset(policy, episodes):
    one = episodes[0]
    first = acts(policy, one, 1)
    other = policy.act(one.images[:1], one.states[:1])
    assert not np.array_equal(first, other) or (one.images[0] == one.images[1]).all()
    assert np.array_equal(acts(policy, one, 1), first)


def test_frames_of_another_size_are_fitted_to_those_of_the_training(episodes, checkpoint):
    args = TrainArgs(episodes="e", output="o", epochs=3, model=checkpoint, layer="1")
    policy = train_policy(args, episodes, progress=False, resolution=16, **FACTS)
    wide = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    made, direct, wanted = (policy.act(each, np.zeros((1, 2))) for each in (wide, fitted(wide, 32), fitted(wide, 16)))
    assert np.array_equal(made, wanted) and not np.array_equal(direct, made)


def test_clipping_follows_the_demonstrations(episodes):
    policy = learn(episodes, arm="proprio")
    with torch.no_grad():
        policy.network.actor[-1].bias.fill_(7.0)
    assert policy.config.clipped and (policy.act(np.zeros((1, 0, 0, 3)), np.zeros((1, 2))) == 1).all()
    for each in (wide := demonstrate(4)):
        each.actions = 30 * each.actions
    policy = learn(wide, arm="proprio")
    with torch.no_grad():
        policy.network.actor[-1].bias.fill_(7.0)
    assert not policy.config.clipped and (policy.act(np.zeros((1, 0, 0, 3)), np.zeros((1, 2))) > 30).all()


def test_lerobots_face(policy, saved, episodes):
    face = TotoPolicy.from_pretrained(saved).eval()
    one, other = episodes[:2]
    noise = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 3), dtype=np.uint8)  # all values
    policy.reset(2)
    for t in range(3):
        images = noise[t]
        states = np.stack([one.states[t], other.states[t]])
        wanted = policy.act(images, states)
        frames = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        batch = {"observation.images.above": frames, "observation.state": torch.from_numpy(states), "task": ["", ""]}
        made = face.select_action(batch)
        assert made.dtype == torch.float32 and np.array_equal(made.numpy(), wanted)
    face.reset()
    batch = {name: value[:1] for name, value in batch.items()}
    batch["observation.images.above"] = torch.from_numpy(images[:1]).permute(0, 3, 1, 2)  # uint8 is taken too
    policy.reset()
    assert np.array_equal(face.select_action(batch).numpy(), policy.act(images[:1], states[:1]))
    fine = learn(episodes, arm="pixels")  # no codes, which hide small changes
    wanted = fine.act(images[:1], states[:1])
    given = {"observation.images.above": frames[:1], "observation.state": batch["observation.state"]}
    assert np.array_equal(TotoPolicy(fine).select_action(given).numpy(), wanted)
    for change, why in (
        ({"observation.images.above": None}, r"The batch has no observation.images.above, .* it has observation.state"),
        ({"observation.images.above": 255 * frames}, "values from 0 to 255; pass floats in"),
        ({"observation.images.above": frames[0]}, r"pass \(B, 3, H, W\)"),
    ):
        changed = {name: value for name, value in (batch | change).items() if value is not None}
        with pytest.raises(ValueError, match=why):
            face.select_action(changed)


def test_bad_observations(policy, episodes):
    image, state = episodes[0].images[:1], episodes[0].states[:1]
    policy.reset()
    for given, why in (
        ((image, np.zeros((1, 7))), r"states has the shape \(1, 7\) and the policy reads \(B, 2\)"),
        ((image, np.array([[0, np.inf]])), r"states\[0, 1\] is inf; pass finite numbers"),
        ((image[:0], state), "images has 0 rows and the policy acts in 1 episodes"),
        (
            (np.tile(image, (2, 1, 1, 1)), np.tile(state, (2, 1))),
            "states has 2 rows .*; pass one row of each, or reset",
        ),
        ((image.astype(float), state), "images is float64"),
    ):
        with pytest.raises(ValueError, match=why):
            policy.act(*given)
    oracle = learn(episodes, arm="oracle")
    with pytest.raises(ValueError, match="pass environment_states"):
        oracle.act(image, state)
    with pytest.raises(ValueError, match=r"environment_states has the shape \(1, 9\)"):
        oracle.act(image, state, np.zeros((1, 9)))


def test_folders_that_are_no_policies(saved, checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a policy folder: it has no config.json"):
        Policy.load(tmp_path)
    with pytest.raises(ValueError, match=r"its config.json is of something else"):
        Policy.load(checkpoint)
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    content = json.loads((broken / CONFIG).read_text()) | {"action_size": 5}
    (broken / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"its model.safetensors does not fit its config.json"):
        Policy.load(broken)
