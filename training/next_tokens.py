"""The objective of pre-training: next-token prediction (paper Sec. 3.2), logged and validated per source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.architectures import losses, training_flops
from training.args import DataArgs
from training.engine.objective import Objective, accumulation_steps
from training.engine.progress import finite, starved, write_loss_maps
from training.rows.mixture import RowStream


class NextTokens(Objective):
    """The mean next-token loss over codes and end tokens.

    The four sums of a row are: code losses, codes, end losses, ends.

    Args:
        model: not yet prepared by the accelerator.
        validation: source -> rows, for sources that have any.
        layout: the TotoConfig that defines a row, for other architectures too.
    """

    verb = "pretrain"

    def __init__(self, model, stream: RowStream, validation: dict[str, list], data: DataArgs, layout, world: int):
        self.stream, self.validation, self.layout = stream, validation, layout
        self.micro, self.accumulation = accumulation_steps(data, layout.num_frames * layout.tokens_per_frame, world)
        self.tokens_per_step, self.flops_per_token = data.tokens_per_step, training_flops(model, layout)
        self.validates = bool(validation)

    def losses(self, model, rows: list, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        found = losses(model, rows, device, self.accumulation)
        exact = torch.float32 if device.type == "mps" else torch.float64  # which it does not have
        nats, codes, ends = (part.to(exact) for part in (found.token_losses, found.codes, found.ends))
        return found.loss, torch.stack([(nats * codes).sum(1), codes.sum(1), (nats * ends).sum(1), ends.sum(1)], 1)

    def figures(self, sums: list[float]) -> dict[str, float | None]:
        codes_sum, codes, ends_sum, ends = sums
        return {"loss": codes_sum / codes, "end_loss": ends_sum / ends if ends else None}

    def validate(self, accelerator, model, run: Path, step: int) -> dict:
        weights = self.stream.weights(self.validation)
        row, maps = validate(accelerator, model, self.validation, weights, self.micro)
        if accelerator.is_main_process:
            write_loss_maps(run, step, self.layout, maps)
        return row

    def pictures(self, model, processor) -> dict[str, Image.Image]:
        """Named "continued/SOURCE": its first validation row, above the same row continued from its first half."""
        if processor is None or not hasattr(model, "generate_frames") or self.layout.num_frames < 2:
            return {}
        found, device = {}, model.device
        frames = self.layout.num_frames // 2
        prompt = self.layout.row_length(frames) - 1  # start token and whole frames
        for name, rows in self.validation.items():
            row = rows[0][None].to(device)
            generator = torch.Generator(device).manual_seed(0)  # the training's own draws stay as they are
            continued = model.generate_frames(row[:, :prompt], self.layout.num_frames - frames, generator=generator)
            strips = [np.concatenate(list(processor.decode(ids[0].cpu())), axis=1) for ids in (row, continued)]
            found[f"continued/{name}"] = Image.fromarray(np.concatenate(strips))
        return found

    def starved(self, waited: float) -> str:
        return starved(waited, has_pixels=not all(rows.is_indexed for rows in self.stream.sources))


@torch.no_grad()
def validate(accelerator, model, validation: dict[str, list], weights: list[float], batch_size: int) -> tuple:
    """Losses on validation rows; the ranks share the work.

    Args:
        validation: source -> its rows.
        weights: shares of these sources in the mixture.
    Returns:
        (row, maps). row: a row for the metrics, with "val_loss" (the sources' means weighted as in the mixture),
        "val_losses" per source, "val_end_loss" of end tokens (None if there are none), "val_frame_losses" (the mean of
        each frame) and "val_rows". maps: source -> mean loss at every position of a row, (T * tokens_per_frame,).
    """
    model.eval()
    config = accelerator.unwrap_model(model).config
    places = config.num_frames * config.tokens_per_frame
    sums = torch.zeros(len(validation), places + 2, dtype=torch.float64)  # positions; ends and their number
    rank, world = accelerator.process_index, accelerator.num_processes
    for number, rows in enumerate(validation.values()):
        # Every rank makes the same number of calls, since those of a sharded model wait for each other.
        for start in range(0, len(rows), batch_size * world):
            batch = rows[start : start + batch_size * world][rank::world]
            found = losses(model, batch or rows[:1], accelerator.device, 1)
            if batch:
                nats, codes, ends = found.token_losses.to("cpu", torch.float64), found.codes.cpu(), found.ends.cpu()
                sums[number, :places] += nats[codes].view(len(batch), places).sum(0)
                sums[number, places] += nats[ends].sum()
                sums[number, places + 1] += ends.sum()
    model.train()
    sums = accelerator.reduce(sums.to(accelerator.device, torch.float32), "sum").double().cpu()
    counts = torch.tensor([len(rows) for rows in validation.values()], dtype=torch.float64)
    maps = sums[:, :places] / counts[:, None]  # (sources, places)
    shares = torch.tensor(weights, dtype=torch.float64)[:, None] / sum(weights)
    mean = (maps * shares).sum(0)
    ends = sums[:, places:].sum(0).tolist()
    row = {
        "val_loss": finite(mean.mean().item()),
        "val_end_loss": finite(ends[0] / ends[1]) if ends[1] else None,
        "val_losses": {name: finite(each.mean().item()) for name, each in zip(validation, maps, strict=True)},
        "val_frame_losses": [finite(x) for x in mean.view(config.num_frames, -1).mean(1).tolist()],
        "val_rows": int(counts.sum()),
    }
    return row, dict(zip(validation, maps, strict=True))
