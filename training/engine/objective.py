"""The interface between the training loop and an objective (pre-training or fine-tuning), and the size of a step."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from training.args import DataArgs
from training.flags import require


class Objective:
    """An objective defines the losses of rows and the validation. The loop does the rest.

    Fields:
        verb: of the command, for the log.
        micro, accumulation: rows per micro-batch on a device, micro-batches per step.
        tokens_per_step: code tokens per step, on all devices.
        flops_per_token: training FLOPs per code token.
        validates: whether there is anything to validate on.
    """

    verb: str
    micro: int
    accumulation: int
    tokens_per_step: int
    flops_per_token: float
    validates: bool

    def losses(self, model, rows: list, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a micro-batch, and the sums of its rows.

        Returns:
            (loss, sums). loss: to back-propagate; the share of this micro-batch in the mean over the step. sums: (rows,
            4) on any device, where the loop leaves them until the step's last backward pass has begun; the first two
            are the loss that is logged per source, and its count.
        """
        raise NotImplementedError

    def figures(self, sums: list[float]) -> dict[str, float | None]:
        """The figures that are logged for a step, from the four sums over all its rows; "loss" comes first."""
        raise NotImplementedError

    def validate(self, accelerator, model, run: Path, step: int) -> dict:
        """A row for the metrics, with "val_loss"; every rank calls it. Larger results are written into `run`."""
        raise NotImplementedError

    def pictures(self, model, processor) -> dict:
        """Name -> PIL image, for the trackers: what the model makes; the first process calls it after a validation.

        Args:
            model: unwrapped. processor: of the run, or None.
        """
        return {}

    def starved(self, waited: float) -> str:
        """The warning for a run that waits for its data. waited: share of the time."""
        raise NotImplementedError

    def stepped(self, step: int) -> None:
        """Called after optimiser step `step` (from 1) has changed the weights."""

    def saved_weights(self) -> contextlib.AbstractContextManager:
        """A context in which the model has the weights to be saved in a checkpoint's model files."""
        return contextlib.nullcontext()

    def saved_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Folder -> named tensors that resuming needs, besides weights and moments; called inside `saved_weights()`."""
        return {}

    def write_beside(self, folder: Path) -> None:
        """Write files that belong to the model into a checkpoint; only the first process does, and in a thread."""

    def load(self, folder: Path, loop_state: dict, distributed: bool) -> None:
        """Restore what `saved_tensors` and `state_dict` returned."""

    def state_dict(self, step: int) -> dict:
        """The part of the state that is JSON; called before a checkpoint of this step is written."""
        return {}

    def spared(self) -> set[int]:
        """Steps whose checkpoints are never deleted."""
        return set()


def accumulation_steps(args: DataArgs, tokens_per_row: int, world: int) -> tuple[int, int]:
    """(rows per micro-batch on a device, micro-batches per step) for steps of `tokens_per_step` code tokens.

    Raises:
        ValueError: a step is not a whole number of rows, or of micro-batches.
    """
    rows = args.tokens_per_step // tokens_per_row
    require(
        rows > 0 and rows * tokens_per_row == args.tokens_per_step,
        f"--tokens_per_step is {args.tokens_per_step}; it must be a multiple of the {tokens_per_row} code tokens of a "
        "row.",
    )
    return micro_batches(rows, args.per_device_batch_size, world, "--tokens_per_step")


def micro_batches(rows: int, per_device: int, world: int, flag: str) -> tuple[int, int]:
    """(rows per micro-batch on a device, micro-batches per step) for steps of `rows` rows, set by `flag`.

    Raises:
        ValueError: the rows of a step cannot be divided into processes or micro-batches.
    """
    require(rows % world == 0, f"{flag} gives {rows} rows per step; they must be a multiple of {world} processes.")
    micro = min(per_device, rows // world)
    require(
        rows // world % micro == 0,
        f"A step has {rows // world} rows per process; they must be a multiple of --per_device_batch_size {micro}.",
    )
    return micro, rows // world // micro
