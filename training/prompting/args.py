"""Flags of `toto prompt train`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from training.args import PretrainOptimArgs, RunArgs
from training.flags import absolute, option, require, require_choice, require_not_negative, require_positive
from training.prompting.tasks import TASKS

DESCRIPTION = (
    "Tune a pre-trained Toto so that it can be prompted (paper App. A.11): rows of images and their labels, drawn as "
    "frames, for depth, optical flow and segmentation, from the embedded world or from a folder of pairs. "
    "toto prompt train --resume RUN continues a killed run exactly."
)


@dataclass(frozen=True)
class PromptModelArgs:
    """The model to tune."""

    model: str | None = option(None, "a pre-trained Toto: Hub id, Hugging Face folder or run folder")
    from_scratch: bool = option(
        False, "control: the same architecture and tokenizer with new weights, for the same steps"
    )


@dataclass(frozen=True)
class PromptDataArgs:
    """The tasks and their rows."""

    task: str = option("all", "depth, flow, segmentation, or all three in turn (only of the embedded world)")
    data: str | None = option(
        None,
        "folder of pairs: image/ and label/ with equal names, for flow also second/; labels are 8- or 16-bit PNG or "
        ".npy; or a parquet file with these columns (default: toyworld:motion)",
    )
    low: float | None = option(None, "lower end of the clipping range of --data (default: from its labels)")
    high: float | None = option(None, "upper end of the clipping range of --data (default: from its labels)")
    rows_per_step: int = option(4, "rows per optimiser step, on all devices")
    per_device_batch_size: int = option(4, "rows at a time on a device; accumulation follows from rows_per_step")
    val_rows: int = option(32, "validation rows per task")

    def __post_init__(self):
        require_choice(self, "task", (*TASKS, "all"))
        require_positive(self, "rows_per_step", "per_device_batch_size")
        require_not_negative(self, "val_rows")
        require(
            self.data is None or self.task != "all",
            f"--data {self.data} holds the labels of one task; name it with --task {', '.join(TASKS)}.",
        )
        require(
            self.data is not None or (self.low is None and self.high is None),
            "--low and --high set the range of --data; the embedded world has its own. Leave them out.",
        )
        require(
            self.low is None or self.high is None or self.low < self.high,
            f"--low is {self.low} and --high {self.high}; --low must be below --high.",
        )

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return list(TASKS) if self.task == "all" else [self.task]

    def absolute(self) -> PromptDataArgs:
        """The same settings with absolute paths."""
        return replace(self, data=absolute(self.data))


@dataclass(frozen=True)
class PromptRunArgs(RunArgs):
    """How long a tuning is, where it is written, and what it logs."""

    max_steps: int = field(
        default=1000, metadata={"help": "optimiser steps (paper: about 1,000)", "aliases": ["--steps"]}
    )
    save_steps: int = option(250, "steps between checkpoints; one is also written at the end")
    logging_steps: int = option(25, "steps between log lines and rows of metrics.jsonl")


@dataclass(frozen=True)
class PromptOptimArgs(PretrainOptimArgs):
    """The optimiser and its schedule (paper silent)."""

    learning_rate: float = option(1e-3, "peak learning rate (paper silent)")
    warmup_steps: int = option(50, "steps of linear warm-up (paper silent)")
