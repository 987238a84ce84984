"""`toto robot policy`: answers line by line, goes on after bad ones, and replays stored episodes."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_world import demonstrate, write_folder
from PIL import Image

from evaluation.robot.episodes.reading import open_episodes
from evaluation.robot.policy import Policy
from evaluation.robot.serve import answer, main, stored_episode
from evaluation.robot.serve_args import ServeArgs
from evaluation.robot.train import train
from evaluation.robot.train_args import TrainArgs


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint):
    """(folder of episodes, folder of a policy that reads the last two frames)."""
    root = tmp_path_factory.mktemp("serve")
    episodes = write_folder(root / "episodes", demonstrate(5, 32))
    given = {"model": checkpoint, "layer": "1", "context_frames": 2, "epochs": 3}
    train(TrainArgs(episodes=episodes, output=str(root / "policy"), **given), "test", progress=False)
    return episodes, str(root / "policy")


@pytest.fixture(scope="module")
def policy(made):
    return Policy.load(made[1])


@pytest.fixture(scope="module")
def episode(made):
    return open_episodes(made[0]).episode(0, None, 32)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def ask(policy, *lines):
    output = io.StringIO()
    answer(policy, [line if isinstance(line, str) else json.dumps(line) for line in lines], output)
    return [json.loads(line) for line in output.getvalue().splitlines()]


def seen(episode, t, **more):
    return {"image": png(episode.images[t]), "state": episode.states[t].tolist()} | more


def test_answers_are_the_policys_actions(policy, episode):
    policy.reset()
    wanted = [policy.act(episode.images[t : t + 1], episode.states[t : t + 1])[0] for t in range(3)]
    replies = ask(policy, *(seen(episode, t) for t in range(3)), "", {"reset": True}, seen(episode, 2))
    assert [each["action"] for each in replies[:3]] == [action.tolist() for action in wanted]
    assert replies[3] == {"reset": True} and all(each["ms"] > 0 for each in replies[:3])
    assert replies[4]["action"] != replies[2]["action"]  # without the frame before
    assert ask(policy, seen(episode, 1), seen(episode, 2, reset=True))[1]["action"] == replies[4]["action"]


def test_an_image_by_its_file(policy, episode, tmp_path):
    Image.fromarray(episode.images[0]).save(tmp_path / "now.png")
    by_file = ask(policy, {"image": str(tmp_path / "now.png"), "state": episode.states[0].tolist()})
    uri = {"image": "data:image/png;base64," + png(episode.images[0]), "state": episode.states[0].tolist()}
    assert by_file[0]["action"] == ask(policy, seen(episode, 0))[0]["action"] == ask(policy, uri)[0]["action"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "The line is not JSON"),
        ("[1]", "not a JSON object"),
        ({"state": [0, 0]}, "has no image; this policy reads: state of 2 numbers, image of the camera above"),
        ({"image": "gone.png", "state": [0, 0]}, "image 'gone.png' is neither a file"),
        ({"image": "A" * 4000, "state": [0, 0]}, r"image 'A{40}\.\.\.' is neither"),
        ({"image": 3, "state": [0, 0]}, "image is not text"),
        ({"image": png(np.zeros((32, 32, 3), np.uint8)), "state": [0]}, r"state.* has the shape \(1, 1\)"),
        ({"image": png(np.zeros((32, 32, 3), np.uint8)), "state": "0 0"}, "state is not a list of numbers"),
        ({"image": png(np.zeros((32, 32, 3), np.uint8)), "state": [0, float("nan")]}, "is nan; pass finite"),
        ({"picture": "a"}, "unknown part 'picture'"),
    ],
)
def test_a_bad_line_is_answered_and_the_episode_goes_on(policy, episode, line, why):
    good, bad, after = ask(policy, seen(episode, 0), line, seen(episode, 1))
    assert list(bad) == ["error"]
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(bad["error"])
    assert after["action"] == ask(policy, seen(episode, 0), seen(episode, 1))[1]["action"] and good["action"]


def test_a_stored_episode_is_replayed(made, episode, policy, capsys):
    folder, output = made
    main(["--policy", output, "--episodes", folder])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "actions: dx, dy" and lines[1].split() == ["step", "policy", "recorded"]
    rows = np.array([[float(number) for number in line.split()] for line in lines[2 : 2 + len(episode.actions)]])
    policy.reset()
    acted = [policy.act(episode.images[t : t + 1], episode.states[t : t + 1])[0] for t in range(len(rows))]
    np.testing.assert_allclose(rows[:, 1:3], acted, atol=6e-4)
    np.testing.assert_allclose(rows[:, 3:], episode.actions, atol=6e-4)
    error = np.square(np.array(acted) - episode.actions).mean()
    assert f"mean squared error {error:.4f}" in lines[-3] and "latency: median" in lines[-2]
    assert "every 100.0 ms" in lines[-2] and lines[-1] == "The policy was trained on this episode."
    main(["--policy", output, "--episodes", folder, "--episode", "4"])
    assert capsys.readouterr().out.splitlines()[-1] == "Training held this episode out."


def test_episodes_of_another_robot(made, policy, episode, tmp_path):
    other = demonstrate(1, 32)
    other[0].actions = other[0].actions[:, :1].copy()
    folder = write_folder(tmp_path / "other", other)
    with pytest.raises(ValueError, match=r"The policy has 2 action numbers and .* has 1; choose episodes of its own"):
        stored_episode(policy, folder, 0)
    with pytest.raises(ValueError, match="has episodes 0 to 4, not 5"):
        stored_episode(policy, made[0], 5)


def test_bad_flags(made):
    with pytest.raises(ValueError, match="--policy FOLDER is missing"):
        ServeArgs()
    with pytest.raises(ValueError, match="--episode would have no effect without --episodes"):
        main(["--policy", made[1], "--episode", "1"])
    with pytest.raises(FileNotFoundError, match="is not a policy folder"):
        main(["--policy", made[0]])


def test_standard_input_and_output(made, episode, policy):
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "evaluation.robot", "policy", "--policy", made[1]]
    lines = "".join(json.dumps(seen(episode, t)) + "\n" for t in range(2)) + "{\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=root, check=True)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(replies) == 3 and "error" in replies[2]
    assert replies[1]["action"] == pytest.approx(ask(policy, seen(episode, 0), seen(episode, 1))[1]["action"], abs=1e-5)
