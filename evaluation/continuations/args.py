"""Flags of `toto generate --score`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenization.sampling import TimeStepArgs
from training.flags import option, refuse_idle, require, require_choice, require_not_negative, require_positive

DESCRIPTION = (
    "Continue held-out clips and measure the frames: on toyworld:motion against the world's exact truth (masks, "
    "identity, codes, PSNR, SSIM, bounces, returns after occlusion, periods), on other data against the true pixels "
    "and codes; next to floors and the tokenizer's ceiling."
)
COMPARE_DESCRIPTION = (
    "Compare models by their results of toto generate --score on the same clips: one figure of the measures against "
    "the drawn frame, with 95 % bands, and a table."
)
MOST = 7  # models in one figure, which can be told apart
# Flags of the two ways of drawing, which have no effect on a curve over checkpoints.
DRAWING = ("num_samples", "temperature", "top_k", "top_p", "seed", "floor_clips", "predictions", "sheets")


@dataclass(frozen=True)
class ScoreArgs(TimeStepArgs):
    model: str | None = option(None, "Hub id, Hugging Face folder or run folder")
    output: str | None = option(None, "result file to write (.json); a figure (.png) is written next to it")
    score: bool = option(False, "score held-out clips instead of drawing videos")
    checkpoints: bool = option(
        False, "score every checkpoint of the run folder --model, greedy only: a curve against training tokens"
    )
    dataset: str = option(
        "toyworld:motion",
        "toyworld:motion, or toyworld:motion:NAME=NUMBER,... for other rules, which are measured against the world's "
        "truth; or a folder, file, Hub id or other variant of toyworld, of whose clips only pixels and codes are "
        "compared",
    )
    split: str = option("test", "validation or test; of data that are not toyworld, any split")
    max_clips: int = option(512, "clips to score, from the split's first one; one of each video")
    num_prompt_frames: int | None = option(
        None, "true frames given to the model (default: 8 on toyworld:motion, otherwise half of the model's frames)"
    )
    num_frames: int | None = option(
        None, "frames to generate (default: 8 on toyworld:motion, otherwise the rest of the model's frames)"
    )
    num_samples: int = option(4, "sampled continuations per clip, next to the greedy one")
    temperature: float = option(1.0, "temperature of the sampled continuations")
    top_k: int | None = option(None, "sample only from the k most likely tokens")
    top_p: float | None = option(None, "sample only from the most likely tokens with this total probability")
    seed: int = option(0, "seed of the sampling")
    batch_size: int = option(32, "clips that are continued at a time; sampled tokens depend on it")
    floor_clips: int | None = option(
        None,
        "training clips that the previous-frame predictor is counted on; 0 leaves this floor out (default: 2000 on "
        "toyworld:motion, otherwise 0)",
    )
    sheets: int = option(0, "draw the first N clips, true above greedy, as one picture next to --output")
    predictions: bool = option(False, "keep the values of every clip in a compressed .npz next to --output")

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.model), "--model MODEL is missing; name the model to score.")
        require(self.output is not None, "--output FILE.json is missing; name where to write.")
        require(self.output.endswith(".json"), f"--output is '{self.output}'; it must end in .json.")
        if self.is_drawn:
            require(
                self.split != "train",
                "--split is train, which the model was trained on; choose validation or test.",
            )
            require_choice(self, "split", ("validation", "test"))
        require(
            self.is_motion or not self.checkpoints,
            f"--dataset is '{self.dataset}'; --checkpoints needs toyworld:motion.",
        )
        require_positive(
            self, "max_clips", "num_prompt_frames", "num_frames", "num_samples", "batch_size", "temperature", "top_k"
        )
        require_not_negative(self, "floor_clips", "sheets")
        require(self.floor_clips != 1, "--floor_clips is 1; the predictor needs at least two clips, or 0 for none.")
        require(self.top_p is None or 0 < self.top_p <= 1, f"--top_p is {self.top_p}; it must be above 0, at most 1.")

    @property
    def is_motion(self) -> bool:
        """Whether the data are the world whose truth is measured against."""
        return self.dataset.split(":")[:2] == ["toyworld", "motion"]

    @property
    def is_drawn(self) -> bool:
        """Whether the data are clips of the embedded world."""
        return self.dataset.split(":")[0] == "toyworld"

    def with_defaults(self) -> ScoreArgs:
        """With the defaults that depend on the data; those that depend on the model too stay None."""
        floor_clips = (2000 if self.is_motion else 0) if self.floor_clips is None else self.floor_clips
        if not self.is_motion:
            return replace(self, floor_clips=floor_clips)
        prompt, new = (8 if each is None else each for each in (self.num_prompt_frames, self.num_frames))
        return replace(self, floor_clips=floor_clips, num_prompt_frames=prompt, num_frames=new)


@dataclass(frozen=True)
class CompareArgs:
    compare: list[str] = option([], "results of toto generate --score (.json), of the same clips")
    output: str | None = option(None, "figure to write (.png)")
    way: str = option("greedy", "greedy, sampled or best: which continuations of each model are compared")

    def __post_init__(self):
        require(len(self.compare) > 1, "--compare needs two or more results; name their .json files.")
        require(len(self.compare) <= MOST, f"--compare names {len(self.compare)} results; give at most {MOST}.")
        require(self.output is not None, "--output FILE.png is missing; name where to write.")
        require(self.output.endswith(".png"), f"--output is '{self.output}'; it must end in .png.")
        require_choice(self, "way", ("greedy", "sampled", "best"))


def check_flags(args: ScoreArgs, argv: list[str]) -> None:
    """Raises ValueError for unknown rules of the world, or a flag that would have no effect next to the others."""
    from tokenization.toyworld import MotionRules

    if args.is_motion:
        MotionRules.parse(args.dataset.partition("motion")[2].lstrip(":"))
    if args.is_drawn:
        refuse_idle(argv, ("stride", "fps", "resize"), "on toyworld, which is drawn")
    if args.fps is not None:
        refuse_idle(argv, ("stride",), "next to --fps")
    if args.checkpoints:
        refuse_idle(argv, DRAWING, "with --checkpoints, which scores greedy continuations only")
