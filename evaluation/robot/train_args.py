"""Flags of `toto robot train`."""

from __future__ import annotations

from dataclasses import dataclass

from training.flags import option, require, require_not_negative, require_positive

DESCRIPTION = (
    "Train a policy on a folder of episodes in LeRobotDataset's layout (v2.1 or v3.0), from toto robot collect or a "
    "real robot: behaviour cloning with MVP's head and published numbers, on the frozen features of one layer and the "
    "robot's state. With --dagger, rounds in which the policy drives the simulator and its scripted expert corrects it."
)
ARMS = "toto, untrained, pixels, proprio, oracle or vision:MODEL"


@dataclass(frozen=True)
class TrainArgs:
    episodes: str | None = option(None, "folder of episodes to learn from")
    output: str | None = option(None, "folder of the policy to write")
    arm: str = option("toto", f"what the policy sees besides the robot's state: {ARMS}")
    model: str | None = option(None, "Hub id, folder or run of the frozen model of --arm toto and untrained")
    layer: str = option(
        "auto", "layer of the model, 0 = embeddings; auto: where a linear map reads the held-out actions best"
    )
    camera: str | None = option(None, "camera of the episodes (default: the only one)")
    resolution: int | None = option(
        None, "side in pixels at which frames are read (default: the simulator's, else the model's own)"
    )
    context_frames: int = option(1, "last frames that a Toto reads at each step")
    max_tokens: int = option(16, "most tokens per frame, after averaging neighbours")
    epochs: int = option(400, "passes over all observations; a tenth of them is warm-up")
    batch_size: int = option(128, "observations per step")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    weight_decay: float = option(0.01, "weight decay of matrices; biases have none")
    seed: int = option(0, "seed of the first weights and of the order of observations")
    sight_seed: int = option(0, "seed of the random weights of --arm untrained")
    dagger: int = option(0, "rounds of DAgger after the first training; they need a simulator")
    task: str | None = option(
        None, "task of the simulator, such as drawer-open-v3, where the folder is not of toto robot collect"
    )

    def __post_init__(self):
        require(self.episodes is not None, "--episodes FOLDER is missing; name a folder of episodes to learn from.")
        require(self.output is not None, "--output FOLDER is missing; name a folder for the policy.")
        require(
            self.layer == "auto" or self.layer.isdigit(),
            f"--layer is '{self.layer}'; it must be a layer number or auto.",
        )
        require_positive(self, "resolution", "context_frames", "max_tokens", "epochs", "batch_size", "learning_rate")
        require_not_negative(self, "weight_decay", "dagger")
