"""A world of a few lines: a point is moved to a goal, a bright square; and policies for it."""

from types import SimpleNamespace

import numpy as np

from evaluation.robot.collect import RECORD, record_episode
from evaluation.robot.episodes.writing import EpisodeWriter
from evaluation.robot.observations import Observation
from tokenization.files import write_json

SIDE = 8


class FakeSimulator:
    """State: the place of the point, (2,). Environment: place and goal, (4,). An action moves by a tenth of itself."""

    fps, state_size, action_size, environment_size, camera = 10, 2, 2, 4, "above"
    opened = closed = 0

    def __init__(self, task="reach", resolution=SIDE, camera="above", action_repeat=2):
        self.task, self.resolution, self.action_repeat = task, resolution, action_repeat
        type(self).opened += 1
        self.starts = []

    def reset(self, seed):
        rng = np.random.default_rng(seed)
        self.starts.append(seed)
        self.place, self.goal = rng.uniform(-0.5, 0.5, (2, 2)).astype(np.float32)
        return self.look()

    def look(self):
        image = np.zeros((self.resolution, self.resolution, 3), np.uint8)
        row, column = ((self.goal + 0.5) * (self.resolution - 1)).round().astype(int)
        image[row, column] = 255
        done = bool(np.abs(self.place - self.goal).max() < 0.06)
        return Observation(image, self.place.copy(), np.concatenate([self.place, self.goal]), done)

    def step(self, action):
        self.place = (self.place + 0.1 * np.clip(action, -1, 1)).astype(np.float32)
        return self.look()

    def expert(self):
        return np.clip(10 * (self.goal - self.place), -1, 1).astype(np.float32)

    def close(self):
        type(self).closed += 1


class FakePolicy:
    """Goes to the goal that it sees in the frame, with the gain of its training."""

    device = "cpu"

    def __init__(self, gain=1.0, **facts):
        known = {"simulator": {"task": "reach", "action_repeat": 2}, "training": {"longest": 8}, "task": "reach it"}
        known |= {"arm": "pixels", "model": None, "layer": None, "state_size": 2, "action_size": 2}
        self.config = SimpleNamespace(**known | {"resolution": SIDE, "camera": "above", "fps": 10} | facts)
        self.gain, self.sizes, self.kept = gain, [], []

    def reset(self, batch_size=1):
        self.rows = list(range(batch_size))
        self.noise = np.zeros(batch_size)  # of each stream: the count of its steps

    def keep(self, rows):
        self.rows, self.noise = [self.rows[k] for k in rows], self.noise[list(rows)]
        self.kept.append(list(self.rows))

    def act(self, images, states, environment_states=None):
        assert len(images) == len(states) == len(self.rows)
        self.sizes.append(len(images))
        self.noise += 1
        goals = np.stack([np.argwhere(image[..., 0] == 255)[0] / (SIDE - 1) - 0.5 for image in images])
        wobble = 0.2 * np.sin(self.noise)[:, None]  # a stream's own memory, so that mixed-up rows are seen
        return np.clip(self.gain * 10 * (goals - states) + wobble, -1, 1).astype(np.float32)


def demonstrate(count, resolution=SIDE, first_seed=0, **facts):
    """Episodes of the expert; the last observation is not kept, as no action follows it."""
    simulator = FakeSimulator(resolution=resolution, **facts)
    return [record_episode(simulator, seed, 12) for seed in range(first_seed, first_seed + count)]


def write_folder(folder, episodes, recorded=True, environment=True):
    """A folder of episodes, with the record of toto robot collect if it is to seem one of a simulator."""
    writer = EpisodeWriter(
        folder,
        fps=10,
        camera="above",
        state_names=("x", "y"),
        action_names=("dx", "dy")[: episodes[0].actions.shape[1]],
        environment_names=("x", "y", "goal_x", "goal_y") if environment else None,
        robot_type="point",
    )
    for index, episode in enumerate(episodes):
        writer.write(index, episode)
    writer.finish()
    if recorded:
        settings = {"task": "reach", "camera": "above", "action_repeat": 2}
        write_json(folder / RECORD, {"settings": settings | {"resolution": episodes[0].images.shape[1]}})
    return str(folder)
