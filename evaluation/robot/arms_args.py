"""Flags of `toto robot arms`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from evaluation.robot.evaluate_args import require_output
from training.flags import option, require, require_not_negative, require_positive

DESCRIPTION = (
    "Compare what policies see, in one table: every arm is trained on the same demonstrations with several seeds, and "
    "all policies act from the same test starts, between the scripted expert and random actions. Layers are chosen on "
    "demonstrations, never on test episodes; the policy is that of the last epoch. A run that was stopped goes on when "
    "it is called again, and arms, seeds and layers that a finished table lacks are added to it. An analogue of the "
    "paper's robot experiments, not their benchmark."
)
VISION = "vision:"
READ_MODEL = ("toto", "untrained")
KNOWN = ("proprio", "oracle", "pixels", *READ_MODEL)
# Flags that say how much is run, or where it is written, and not what a policy's result is.
NOT_OF_A_SEED = ("output", "arms", "seeds", "rollout_layers", "parallel", "videos")


@dataclass(frozen=True)
class ArmsArgs:
    episodes: str | None = option(None, "folder of demonstrations, of a simulated task")
    output: str | None = option(None, "result file to write (.json); its picture and videos are written next to it")
    model: str | None = option(None, "Hub id, folder or run of the Toto of the arms toto and untrained")
    arms: list[str] = option(
        ["proprio", "oracle", "pixels", "untrained", "toto"],
        "what the policies see: proprio (gripper only), oracle (the simulator's own numbers), pixels (a small CNN), "
        "untrained, toto, vision:MODEL (any model that toto probe reads)",
    )
    seeds: int = option(3, "policies of each arm, trained with seeds 0, 1, ...")
    test_episodes: int = option(25, "test starts, the same for all policies, from seed 1,000,000")
    layers: str = option(
        "auto", "layer of frozen models, or auto: for each where a linear map reads the held-out actions best"
    )
    rollout_layers: int = option(
        3, "layers of toto that are rolled out: the one of --layers, and others evenly from the embeddings up"
    )
    max_steps: int | None = option(
        None, "most actions of a test episode (default: 1.5 times the longest demonstration)"
    )
    dagger: int = option(0, "rounds of DAgger after the first training of each policy")
    epochs: int = option(400, "passes over all observations; a tenth of them is warm-up")
    context_frames: int = option(1, "last frames that a Toto reads at each step")
    max_tokens: int = option(16, "most tokens per frame, after averaging neighbours")
    camera: str | None = option(None, "camera of the episodes (default: the only one)")
    resolution: int | None = option(
        None, "side in pixels at which frames are read (default: the simulator's, else the model's own)"
    )
    task: str | None = option(
        None, "task of the simulator, such as drawer-open-v3, where the folder is not of toto robot collect"
    )
    parallel: int = option(25, "simulators that run side by side, with one call of the policy for all")
    videos: int = option(1, "successes and failures to write as mp4, of the first policy of each arm that sees frames")

    def __post_init__(self):
        require(self.episodes is not None, "--episodes FOLDER is missing; name the --output of toto robot collect.")
        require_output(self.output)
        require(bool(self.arms), "--arms is empty; name at least one arm.")
        for arm in self.arms:
            require(
                arm in KNOWN or (arm.startswith(VISION) and len(arm) > len(VISION)),
                f"There is no arm '{arm}'; choose from {', '.join(KNOWN)} or {VISION}MODEL.",
            )
            require(self.arms.count(arm) == 1, f"--arms has '{arm}' twice; name each arm once.")
        reading = [arm for arm in self.arms if arm in READ_MODEL]
        require(
            not reading or self.model is not None,
            f"The arm {', '.join(reading)} needs --model MODEL; name a Toto, such as checkpoints/toto-nano.",
        )
        require(
            self.layers == "auto" or self.layers.isdigit(),
            f"--layers is '{self.layers}'; it must be a layer number or auto.",
        )
        require_positive(
            self, "seeds", "test_episodes", "rollout_layers", "max_steps", "epochs", "context_frames", "max_tokens"
        )
        require_positive(self, "resolution", "parallel")
        require_not_negative(self, "dagger", "videos")

    def of_a_seed(self) -> dict:
        """The flags that a policy's result depends on; no model if no arm reads it."""
        idle = () if any(arm in READ_MODEL for arm in self.arms) else ("model",)
        return {name: value for name, value in asdict(self).items() if name not in (*NOT_OF_A_SEED, *idle)}
