"""`toto robot collect`: episodes that succeed, clips, and going on after a stop."""

import json
import sys

import numpy as np
import pytest
from can_render import require_rendering

from evaluation.robot.collect import main
from evaluation.robot.command import main as command
from evaluation.robot.observations import Observation


class Toy:
    """A simulator whose starts with seed 1 modulo 3 are never done."""

    task, camera, fps, state_size, action_size, environment_size = "toy", "wrist", 20, 8, 4, 39

    def _see(self, success=False):
        image = np.full((16, 16, 3), 10 * self.steps, np.uint8)
        return Observation(image, np.full(8, self.seed, np.float32), np.zeros(39, np.float32), success)

    def reset(self, seed):
        self.seed, self.steps = seed, 0
        return self._see()

    def step(self, action):
        self.steps += 1
        return self._see(self.steps >= 5 and self.seed % 3 != 1)

    def expert(self):
        return np.full(4, 0.5, np.float32)

    def close(self):
        self.closed = True


@pytest.fixture
def toy(monkeypatch):
    made = []
    monkeypatch.setattr("evaluation.robot.simulator.open_simulator", lambda *given: made.append(Toy()) or made[-1])
    monkeypatch.setattr("evaluation.robot.simulator.HORIZON", 20)
    return made


def collect(folder, *flags):
    main(["--task", "toy", "--output", str(folder), "--camera", "wrist", "--resolution", "16", *map(str, flags)])


def test_only_successes_are_kept_and_a_stopped_run_goes_on(toy, tmp_path, capsys):
    from evaluation.robot.episodes import open_episodes

    collect(tmp_path, "--episodes", 2)
    collect(tmp_path, "--episodes", 4)
    record = json.loads((tmp_path / "meta/collect.json").read_text())
    assert record["kept"] == [0, 2, 3, 5] and record["failed"] == [1, 4]
    episodes = open_episodes(tmp_path)
    assert [int(episodes.episode(k, "", 16).states[0, 0]) for k in range(4)] == [0, 2, 3, 5]
    assert len(episodes.episode(0, None, 16).images) == 5 and all(simulator.closed for simulator in toy)
    assert "4 demonstrations" in capsys.readouterr().out and (tmp_path / "meta/stats.json").is_file()
    with pytest.raises(ValueError, match=r"other settings \(--action_repeat\)"):
        collect(tmp_path, "--episodes", 5, "--action_repeat", 4)


def test_clips_alone(toy, tmp_path):
    collect(tmp_path / "clips", "--episodes", 3, "--videos", "--noise", 0.3)
    names = sorted(file.name for file in (tmp_path / "clips").iterdir())
    assert names == ["collect.json", *(f"episode_{k:06d}.mp4" for k in range(3))]


def test_bad_flags(toy, tmp_path):
    with pytest.raises(ValueError, match="--noise needs --videos"):
        collect(tmp_path, "--noise", 0.1)
    with pytest.raises(ValueError, match="would reach seed 500000; set a lower"):
        collect(tmp_path / "late", "--episodes", 2, "--first_seed", 499_999)
    with pytest.raises(ValueError, match="would reach seed 500000; set a lower"):  # the last start fails
        collect(tmp_path / "last", "--episodes", 1, "--first_seed", 499_999)
    collect(tmp_path / "negative", "--episodes", 1, "--first_seed", -2)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        collect(tmp_path)


@pytest.mark.parametrize("package", ["metaworld", "mujoco"])
def test_without_the_extra(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"need Meta-World; pip install 'modeling-toto\[robots\]'"):
        main(["--task", "drawer-open-v3", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_table_of_actions(capsys):
    command([])
    assert (
        "toto robot <action>" in (shown := capsys.readouterr().out) and "pip install 'modeling-toto[robots]'" in shown
    )
    with pytest.raises(ValueError, match="There is no action 'colect'; did you mean collect"):
        command(["colect"])
    with pytest.raises(ValueError, match="--task TASK is missing"):
        command(["collect", "--output", "out"])


def test_a_task_that_does_not_exist(tmp_path):
    pytest.importorskip("metaworld")
    with pytest.raises(ValueError, match="no task 'drawer-opn-v3'; the closest are drawer-open-v3"):
        main(["--task", "drawer-opn-v3", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_real_demonstration(tmp_path):
    require_rendering()
    from evaluation.robot.episodes import open_episodes

    main(f"--task drawer-open-v3 --output {tmp_path} --episodes 1 --resolution 32 --action_repeat 4".split())
    episode = open_episodes(tmp_path).episode(0, None, 32)
    assert episode.success and episode.images.shape[1:] == (32, 32, 3) and episode.environment_states.shape[1] == 39
