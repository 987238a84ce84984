"""Is a run well? How far steps move the weights, where in a row the loss is, what memory and waiting cost."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from tokenization.files import write_whole

# Above this share of the time, rows come more slowly than the device takes them.
STARVED = 0.1
# Parts of a model whose weights are measured together, by a piece of the weights' names; the first that fits counts.
PARTS = {
    "norm": ("norm", "ln_"),
    "embedding": ("embed", "wte", "wpe"),
    "attention": ("attn", "mixer"),
    "mlp": ("mlp",),
    "head": ("head",),
}


@torch.no_grad()
def update_ratios(model, optimizer) -> dict[str, float]:
    """Part of the model -> size of AdamW's last step over the size of its weights, both as root mean squares.

    Taken from the moments after the step, so that no copy of the weights is needed. About 1e-3 is usual; far more is a
    learning rate about to diverge, far less one that does nothing.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    sums: dict[str, list[float]] = {}
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            step = float(state["step"])
            scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
            update = state["exp_avg"] / (1 - beta1**step) / scale + group["weight_decay"] * parameter
            part = next((part for part, signs in PARTS.items() if any(s in names[parameter] for s in signs)), "other")
            found = sums.setdefault(part, [0.0, 0.0])
            found[0] += (group["lr"] * _norm(update)) ** 2
            found[1] += _norm(parameter) ** 2
    return {part: (update / weight) ** 0.5 for part, (update, weight) in sums.items() if weight}


def _norm(tensor: torch.Tensor) -> float:
    norm = tensor.float().norm()
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def peak_memory(device: torch.device) -> float:
    """The most that this process has held so far, in MB: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def starved(waited: float, has_pixels: bool) -> str:
    """The sentence for a run that waits for its data. has_pixels: whether rows are tokenized while training."""
    advice = "tokenize the media first (toto tokenize)" if has_pixels else "put the shards on a faster disk"
    return f"The data cannot feed the device: {waited:.0%} of the time since the last line was waiting; {advice}."


def write_loss_maps(run: Path, step: int, config, maps: dict[str, torch.Tensor]) -> None:
    """RUN/loss_maps.json: mean validation loss of every place in a row, by source.

    maps: name -> (T * tokens_per_frame,) in the order of a row.
    """
    content = {
        "step": step,
        "num_frames": config.num_frames,
        "grid": list(config.grid_size or (1, config.tokens_per_frame)),
        "sources": {name: losses.tolist() for name, losses in maps.items()},
    }
    write_whole(run / "loss_maps.json", lambda path: path.write_text(json.dumps(content) + "\n"))
