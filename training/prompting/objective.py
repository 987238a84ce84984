"""The objective of a tuning for prompts: next-token prediction of the labels' tokens only (paper silent)."""

from __future__ import annotations

from pathlib import Path

import torch

from training.architectures import training_flops
from training.engine.objective import Objective
from training.engine.progress import finite, starved
from training.prompting.tasks import Prompting

IGNORED = -100


class LabelTokens(Objective):
    """The mean next-token loss over the codes of label frames; images are given, so their tokens do not count.

    The four sums of a row are: losses, labels' tokens, 0, 0.

    Args:
        model: not yet prepared by the accelerator.
        validation: task -> rows (L,).
        batches: (rows per micro-batch on a device, micro-batches per step). rows_per_step: on all devices.
    """

    verb = "prompt train"

    def __init__(self, model, prompting: Prompting, validation: dict, batches: tuple[int, int], rows_per_step: int):
        self.prompting, self.validation, self.config = prompting, validation, model.config
        self.micro, self.accumulation = batches
        frames = max(task.frames for task in prompting.tasks.values())
        self.tokens_per_step = rows_per_step * frames * model.config.tokens_per_frame
        self.flops_per_token = training_flops(model, model.config)
        self.validates = any(map(len, validation.values()))

    def labels_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (B, L) -> targets (B, L): the ids of `Task.is_learnt`, IGNORED elsewhere; prompt ids name the tasks."""
        size, found = self.config.tokens_per_frame, torch.full_like(ids, IGNORED)
        for task in self.prompting.tasks.values():
            counted = torch.from_numpy(task.is_learnt.repeat(size))
            rows = torch.nonzero(ids[:, 1] == task.prompt_id)[:, 0]
            places = 2 + torch.nonzero(counted)[:, 0]
            found[rows[:, None], places] = ids[rows[:, None], places]
        return found

    def _losses(self, model, rows: list, device, accumulation: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.stack(rows)
        labels = self.labels_of(ids)
        counts = (labels != IGNORED).sum(1)
        outputs = model(
            input_ids=ids.to(device),
            labels=labels.to(device),
            skip_logits=True,
            num_items_in_batch=accumulation * int(counts.sum()),
        )
        nats = outputs.token_losses.detach().to("cpu", torch.float64).sum(1)
        zeros = torch.zeros(len(ids), 2, dtype=torch.float64)
        return outputs.loss, torch.cat([torch.stack([nats, counts.double()], 1), zeros], 1)

    def losses(self, model, rows: list, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self._losses(model, rows, device, self.accumulation)

    def figures(self, sums: list[float]) -> dict[str, float | None]:
        return {"loss": sums[0] / sums[1]}

    @torch.no_grad()
    def validate(self, accelerator, model, run: Path, step: int) -> dict:
        """A row for the metrics: "val_loss", the mean over tasks, and "val_losses"; every process scores all rows."""
        model.eval()
        means = {}
        for name, rows in self.validation.items():
            sums = torch.zeros(4, dtype=torch.float64)
            for start in range(0, len(rows), self.micro):
                sums += self._losses(model, rows[start : start + self.micro], accelerator.device, 1)[1].sum(0)
            means[name] = float(sums[0] / sums[1])
        model.train()
        return {
            "val_loss": finite(sum(means.values()) / len(means)),
            "val_losses": {name: finite(mean) for name, mean in means.items()},
            "val_rows": sum(map(len, self.validation.values())),
        }

    def write_beside(self, folder: Path) -> None:
        """Write prompt.json next to the checkpoint's model files."""
        self.prompting.write(folder)

    def starved(self, waited: float) -> str:
        return starved(waited, has_pixels=True)
