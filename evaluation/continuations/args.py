"""Flags of `toto generate --score`."""

from __future__ import annotations

from dataclasses import dataclass

from training.flags import option, refuse_idle, require, require_choice, require_not_negative, require_positive

DESCRIPTION = (
    "Continue held-out clips of toyworld:motion and measure the frames against the world's exact truth: masks, "
    "identity, codes, PSNR, bounces, returns after occlusion and periods, next to floors and the tokenizer's ceiling."
)
# Flags of the two ways of drawing, which have no effect on a curve over checkpoints.
DRAWING = ("num_samples", "temperature", "top_k", "top_p", "seed", "floor_clips", "predictions", "sheets")


@dataclass(frozen=True)
class ScoreArgs:
    model: str | None = option(None, "Hub id, Hugging Face folder or run folder")
    output: str | None = option(None, "result file to write (.json); a figure (.png) is written next to it")
    score: bool = option(False, "score held-out clips instead of drawing videos")
    checkpoints: bool = option(
        False, "score every checkpoint of the run folder --model, greedy only: a curve against training tokens"
    )
    dataset: str = option("toyworld:motion", "toyworld:motion, or toyworld:motion:NAME=NUMBER,... for other rules")
    split: str = option("test", "validation or test")
    max_clips: int = option(512, "clips to score, from the split's first one")
    num_prompt_frames: int = option(8, "true frames given to the model")
    num_frames: int = option(8, "frames to generate")
    num_samples: int = option(4, "sampled continuations per clip, next to the greedy one")
    temperature: float = option(1.0, "temperature of the sampled continuations")
    top_k: int | None = option(None, "sample only from the k most likely tokens")
    top_p: float | None = option(None, "sample only from the most likely tokens with this total probability")
    seed: int = option(0, "seed of the sampling")
    batch_size: int = option(32, "clips that are continued at a time; sampled tokens depend on it")
    floor_clips: int = option(
        2000, "training clips that the previous-frame predictor is counted on; 0 leaves this floor out"
    )
    sheets: int = option(0, "draw the first N clips, true above greedy, as one picture next to --output")
    predictions: bool = option(False, "keep the values of every clip in a compressed .npz next to --output")

    def __post_init__(self):
        require(bool(self.model), "--model MODEL is missing; name the model to score.")
        require(self.output is not None, "--output FILE.json is missing; name where to write.")
        require(self.output.endswith(".json"), f"--output is '{self.output}'; it must end in .json.")
        require(
            self.dataset.split(":")[:2] == ["toyworld", "motion"],
            f"--dataset is '{self.dataset}'; only toyworld:motion has the truth that --score measures against.",
        )
        require(
            self.split != "train",
            "--split is train, which the model was trained on; choose validation or test.",
        )
        require_choice(self, "split", ("validation", "test"))
        require_positive(
            self, "max_clips", "num_prompt_frames", "num_frames", "num_samples", "batch_size", "temperature", "top_k"
        )
        require_not_negative(self, "floor_clips", "sheets")
        require(self.floor_clips != 1, "--floor_clips is 1; the predictor needs at least two clips, or 0 for none.")
        require(self.top_p is None or 0 < self.top_p <= 1, f"--top_p is {self.top_p}; it must be above 0, at most 1.")


def check_flags(args: ScoreArgs, argv: list[str]) -> None:
    """Raises ValueError for unknown rules of the world, or a flag that would have no effect next to the others."""
    from tokenization.toyworld import MotionRules

    MotionRules.parse(args.dataset.partition("motion")[2].lstrip(":"))
    if args.checkpoints:
        refuse_idle(argv, DRAWING, "with --checkpoints, which scores greedy continuations only")
