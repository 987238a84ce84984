"""What a training is for: the interface between the loop and pre-training or fine-tuning; how a step is divided."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from training.args import DataArgs, require


class Objective:
    """What a training is for: the losses of its rows, and its validation. The loop does the rest.

    Fields:
        verb: of the command, for the log.
        micro, accumulation: rows of a micro-batch on a device, micro-batches of a step.
        tokens_per_step: code tokens of a step on all devices.
        flops_per_token: training FLOPs of one of them.
        validates: whether there is anything to validate on.
    """

    verb: str
    micro: int
    accumulation: int
    tokens_per_step: int
    flops_per_token: float
    validates: bool

    def losses(self, model, rows: list, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(the loss of a micro-batch to back-propagate, its share of the mean over the step; (rows, 4) float64 on the
        CPU: four sums of every row, the first two the loss that is logged by source, and its count)."""
        raise NotImplementedError

    def figures(self, sums: list[float]) -> dict[str, float | None]:
        """What is logged of a step, from the four sums over all its rows: "loss" first."""
        raise NotImplementedError

    def validate(self, accelerator, model, run: Path, step: int) -> dict:
        """A row for the metrics, with "val_loss"; every rank calls it. Larger results are written into `run`."""
        raise NotImplementedError

    def starved(self, waited: float) -> str:
        """The warning for a run that waits for its data; waited: share of the time."""
        raise NotImplementedError

    def stepped(self, step: int) -> None:
        """Called after optimiser step `step` (from 1) has changed the weights."""

    def saved_weights(self) -> contextlib.AbstractContextManager:
        """Inside it the model has the weights that a checkpoint's model files hold."""
        return contextlib.nullcontext()

    def save(self, folder: Path, distributed: bool) -> None:
        """Write what resuming needs in addition to the model files and the moments into a checkpoint's training state;
        called inside `saved_weights()`."""

    def load(self, folder: Path, loop_state: dict, distributed: bool) -> None:
        """Restore what `save` and `state_dict` kept."""

    def state_dict(self, step: int) -> dict:
        """The part of the state that is JSON; a checkpoint of this step is about to be written."""
        return {}

    def spared(self) -> set[int]:
        """Steps whose checkpoints are never deleted."""
        return set()


def accumulation_steps(args: DataArgs, tokens_per_row: int, world: int) -> tuple[int, int]:
    """(rows of a micro-batch on a device, micro-batches of a step) for steps of `tokens_per_step` code tokens.

    Raises:
        ValueError: a step is not a whole number of rows, or of micro-batches.
    """
    rows = args.tokens_per_step // tokens_per_row
    require(
        rows > 0 and rows * tokens_per_row == args.tokens_per_step,
        f"--tokens_per_step {args.tokens_per_step} is not a multiple of the {tokens_per_row} code tokens of a row.",
    )
    return micro_batches(rows, args.per_device_batch_size, world, "--tokens_per_step")


def micro_batches(rows: int, per_device: int, world: int, flag: str) -> tuple[int, int]:
    """(rows of a micro-batch on a device, micro-batches of a step) for steps of `rows` rows, which `flag` asked for.

    Raises:
        ValueError: the rows of a step do not divide into processes or micro-batches.
    """
    require(rows % world == 0, f"{flag} makes {rows} rows, which {world} processes cannot share equally.")
    micro = min(per_device, rows // world)
    require(
        rows // world % micro == 0,
        f"{rows // world} rows per step and process are not a multiple of --per_device_batch_size {micro}.",
    )
    return micro, rows // world // micro
