"""The objective of fine-tuning: the classes of clips, from ids or from pixels that are tokenized in every step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tokenization.sequences import image_rows, video_rows

from . import checkpoints
from .drop_path import DropPath
from .ema import Average
from .finetune_args import AugmentArgs
from .labelled import Clips
from .loop import Objective
from .progress import finite


class Classify(Objective):
    """The sums of a row are the loss of its label, 1, its next-token loss (0 without) and whether it was right.

    The model that is best on validation, ties going to the lower loss, is never dropped by the rotation; where weights
    are averaged, the averages are validated, and are what a checkpoint's model files hold.

    Args:
        model: unwrapped, but as prepared by the accelerator. processor: tokenizes what comes as pixels.
        validation: clips as codes. micro, accumulation: as in `Objective`.
        rows_per_step: of all devices. average: decay of the weights' average, or None.
    """

    verb = "finetune"
    validates = True

    def __init__(
        self,
        model,
        processor,
        validation: Clips,
        micro: int,
        accumulation: int,
        rows_per_step: int,
        args: AugmentArgs,
        drop_path: DropPath | None,
        average: float | None,
    ):
        self.model, self.processor, self.validation, self.drop_path = model, processor, validation, drop_path
        self.micro, self.accumulation = micro, accumulation
        self.tokens_per_step = rows_per_step * validation.codes[0].size
        self.flops_per_token = classifier_flops(model, len(validation.codes[0]))
        self.has_next = model.config.next_token_loss is not None
        self.is_mixed = bool(args.mixup or args.cutmix)
        self.average = None if average is None else Average(model, average)
        self.best: dict | None = None
        self.validated: dict | None = None

    def losses(self, model, rows: list[dict], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self.drop_path is not None:
            self.drop_path.draw([row["number"] for row in rows], device)
        if "codes" in rows[0]:
            codes = np.stack([row["codes"] for row in rows])  # (B, T, h, w)
        else:
            frames = np.concatenate([row["frames"] for row in rows])  # (B * T, R, R, 3)
            codes = self.processor.encode_frames(frames).unflatten(0, (len(rows), -1))
        targets = torch.from_numpy(np.stack([row["target"] for row in rows])).to(device)  # (B, C)
        labels = targets.argmax(1)
        ids = ids_of(codes, self.validation.kind).to(device)
        # A model with a next-token loss computes it where it is given labels.
        outputs = model(input_ids=ids, **({"labels": labels} if self.has_next else {}))
        nats = cross_entropy(outputs.logits.float(), targets, reduction="none")  # (B,), of soft targets
        loss, next_tokens = nats.mean(), torch.zeros(())
        if self.has_next:
            next_tokens = outputs.next_token_loss
            loss = loss + self.model.config.next_token_loss_weight * next_tokens
        right = outputs.logits.argmax(1) == labels
        ones = torch.ones(len(rows), dtype=torch.float64)
        sums = [nats.detach().cpu(), ones, ones * next_tokens.item(), right.cpu()]
        return loss / self.accumulation, torch.stack([each.double() for each in sums], 1)

    def figures(self, sums: list[float]) -> dict[str, float | None]:
        nats, rows, next_tokens, right = sums
        found = {"loss": nats / rows}
        found |= {"next_token_loss": next_tokens / rows} if self.has_next else {}
        return found | ({} if self.is_mixed else {"accuracy": right / rows})  # a mixed clip has no one class

    def stepped(self, step: int) -> None:
        if self.average is not None:
            self.average.update(step)

    def validate(self, accelerator, model, run: Path, step: int) -> dict:
        with self.saved_weights():
            found = score(accelerator, model, self.validation, self.micro)
        row = {"val_loss": finite(found["loss"]), "val_accuracy": found["correct"] / found["total"]}
        self.validated = {"step": step, **row}
        return row | {"val_rows": found["total"]}

    def starved(self, waited: float) -> str:
        return (
            f"The data cannot feed the device: {waited:.0%} of the time since the last line was waiting; raise "
            "--workers, or take --augment none, which makes tokens once."
        )

    def saved_weights(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def save(self, folder: Path, distributed: bool) -> None:
        if self.average is not None:
            checkpoints.save_tensors(folder / "weights", self.average.put_aside(), distributed)

    def load(self, folder: Path, loop_state: dict, distributed: bool) -> None:
        self.best = loop_state["best"]
        if (folder / "weights").is_dir():  # the model files hold averages
            weights = {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}
            checkpoints.load_tensors(folder / "weights", weights, distributed)

    def state_dict(self, step: int) -> dict:
        is_new = self.validated is not None and self.validated["step"] == step
        if is_new and (self.best is None or _rank(self.validated) > _rank(self.best)):
            self.best = self.validated
        return {"best": self.best}

    def spared(self) -> set[int]:
        return {self.best["step"]} if self.best else set()


def _rank(row: dict) -> tuple[float, float]:
    return row["val_accuracy"], -(row["val_loss"] if row["val_loss"] is not None else float("inf"))


def ids_of(codes, kind: str) -> torch.LongTensor:
    """Codes (B, T, h, w) -> rows of ids (B, 1 + T*h*w + 1), of images (T = 1) or of videos."""
    rows: Callable = image_rows if kind == "image" else video_rows
    return rows(codes)


@torch.no_grad()
def score(accelerator, model, clips: Clips, batch_size: int) -> dict:
    """How a classifier does on clips that are codes, the ranks sharing the work.

    Returns:
        {"correct", "total", "loss" (mean nats), "predictions" (N,) class numbers}
    """
    was_training = model.training
    model.eval()
    rank, world, count = accelerator.process_index, accelerator.num_processes, len(clips)
    found = torch.zeros(count, 2, dtype=torch.float32)  # nats and prediction of every clip, 0 on the other ranks
    for start in range(0, count, batch_size * world):
        mine = torch.arange(start, min(count, start + batch_size * world))[rank::world]
        # Every rank makes as many calls, since those of a sharded model wait for each other.
        taken = mine if len(mine) else torch.zeros(1, dtype=torch.long)
        ids = ids_of(clips.codes[taken.numpy()], clips.kind).to(accelerator.device)
        with accelerator.autocast():
            logits = model(input_ids=ids).logits.float().cpu()
        if len(mine):
            nats = cross_entropy(logits, torch.from_numpy(clips.labels[mine.numpy()]), reduction="none")
            found[mine] = torch.stack([nats, logits.argmax(1).float()], 1)
    model.train(was_training)
    found = accelerator.reduce(found.to(accelerator.device), "sum").cpu()
    predictions = found[:, 1].long().numpy()
    return {
        "correct": int((predictions == clips.labels).sum()),
        "total": count,
        "loss": float(found[:, 0].double().mean()),
        "predictions": predictions,
    }


def classifier_flops(model, frames: int) -> float:
    """Training FLOPs per code token of a row of `frames` frames.

    Counted are 6 per weight of the blocks that run, 6 per causal pair (12 under full attention), and the readout of a
    next-token loss; the head and the visual tokenizer are not.
    """
    config = model.config
    has_next = config.next_token_loss is not None
    d, layers = config.hidden_size, config.num_hidden_layers if has_next else model.feature_layer
    weights = layers * (4 * d * d + 3 * d * config.intermediate_size) + has_next * config.vocab_size * d
    return 6 * weights + (12 if config.attention_mode == "full" else 6) * layers * d * config.row_length(frames)
