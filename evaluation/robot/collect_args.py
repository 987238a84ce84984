"""Flags of `toto robot collect`."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.robot.seeds import require_demonstration_seeds
from training.flags import option, require, require_positive

DESCRIPTION = (
    "Record a scripted expert in a simulated task of Meta-World. Successful episodes become a folder in "
    "LeRobotDataset's layout (v3.0), which toto robot train reads; with --videos, clips alone, for toto tokenize. "
    "A run that was stopped goes on when it is called again."
)


@dataclass(frozen=True)
class CollectArgs:
    task: str | None = option(None, "drawer-open-v3, pick-place-v3, button-press-topdown-v3 or any Meta-World v3 task")
    output: str | None = option(None, "folder to write")
    episodes: int = option(25, "episodes to keep")
    videos: bool = option(False, "write only mp4 clips, of failed episodes too")
    noise: float = option(0.0, "standard deviation of noise on the expert's actions, for varied clips; with --videos")
    camera: str = option("gripperPOV", "camera of the scene; gripperPOV looks from the wrist")
    resolution: int = option(128, "side of the frames in pixels; even")
    first_seed: int = option(0, "seed of the first start; the next starts have the next seeds, below 500000")
    action_repeat: int = option(2, "steps of the simulator (80 per second) for which an action is held")

    def __post_init__(self):
        require(self.task is not None, "--task TASK is missing; name a task such as drawer-open-v3.")
        require(self.output is not None, "--output FOLDER is missing; name a folder to write.")
        require_positive(self, "episodes", "resolution", "action_repeat")
        require_demonstration_seeds(self.first_seed, self.episodes)
        require(self.resolution % 2 == 0, f"--resolution is {self.resolution}; videos need an even number.")
        require(self.noise >= 0, f"--noise is {self.noise:g}; it must be at least 0.")
        require(self.videos or self.noise == 0, "--noise needs --videos: demonstrations are the expert's own actions.")
