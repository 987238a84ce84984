"""Flags of `toto robot evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.robot.seeds import TEST_SEED, require_test_seed
from training.flags import option, require, require_not_negative, require_positive

DESCRIPTION = (
    "Success of trained policies over test episodes in a simulator, with intervals, steps and the latency of a step. "
    "Test starts differ from those of the demonstrations (docs/robots.md). An analogue of the paper's robot "
    "experiments, not their benchmark."
)


@dataclass(frozen=True)
class EvaluateArgs:
    policy: list[str] = option([], "folders that toto robot train wrote; all of one task")
    output: str | None = option(None, "result file to write (.json); videos are written next to it")
    episodes: int = option(25, "test episodes")
    first_seed: int = option(TEST_SEED, "seed of the first test start; the others follow")
    max_steps: int | None = option(
        None, "most actions of an episode (default: 1.5 times the longest demonstration of the policies)"
    )
    parallel: int = option(25, "simulators that run side by side, with one call of the policy for all")
    videos: int = option(0, "successes and failures of each policy to write as mp4, with a sheet of frames")

    def __post_init__(self):
        require(bool(self.policy), "--policy FOLDER is missing; name the --output of toto robot train.")
        require_output(self.output)
        require_positive(self, "episodes", "max_steps", "parallel")
        require_not_negative(self, "videos")
        require_test_seed(self.first_seed)


def require_output(output: str | None) -> None:
    """Raises ValueError unless the result file is a .json."""
    require(
        output is not None and output.endswith(".json"),
        f"--output is '{output}'; name a result file that ends in .json.",
    )
