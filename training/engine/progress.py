"""The reports of a run: metrics.jsonl, log lines, the time of its steps, and warnings."""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tokenization.files import write_whole
from training.engine.optim import is_muon

# Optional columns of metrics.jsonl that a log line shows after the loss -> their names there.
SHOWN = {"end_loss": "end", "next_token_loss": "next", "accuracy": "acc"}
# Share of the time spent waiting above which the data is too slow for the device.
STARVED = 0.1
# Part of a model -> substrings of the names of its weights; the first match counts.
PARTS = {
    "norm": ("norm", "ln_"),
    "embedding": ("embed", "wte", "wpe"),
    "attention": ("attn", "mixer"),
    "mlp": ("mlp",),
    "head": ("head",),
}


class MetricsFile:
    """The metrics.jsonl of a run. Rows are flushed at once; on resume, rows after the checkpoint's step are removed."""

    def __init__(self, path: Path, keep_up_to: int):
        rows = []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the incomplete last line of a killed run
                    continue
                if row["step"] <= keep_up_to:
                    rows.append(line)
            write_whole(path, lambda new: new.write_text("".join(f"{row}\n" for row in rows)))
        self._file = path.open("a")

    def write(self, row: dict) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def flat(row: dict, prefix: str = "") -> dict[str, float]:
    """The numbers of a row, for a tracker; nested ones are named "outer/inner"."""
    found = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            found[f"{prefix}{key}"] = value
    return found


def finite(value: float) -> float | None:
    """The number, or None if it is not finite, since JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None


class Clock:
    """The time of the steps since the last log line, and of the whole training, including before a resume.

    `waited` is the part spent waiting for data, `alone` the part before this process waits for others (with FSDP2,
    which waits in every block, the data again).

    Args:
        peak: FLOPs per second of all devices by their data sheet; None if it is not known.
        measured: those of a large matrix product, measured at the start.
    """

    def __init__(self, peak: float | None, measured: float, flops_per_token: float, tokens_per_step: int):
        self.peak, self.measured = peak, measured
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.seconds, self.taken = 0.0, 0
        self.reset()

    def reset(self) -> None:
        self.steps, self.busy, self.waited, self.alone = 0, 0.0, 0.0, 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    @property
    def running(self) -> float:
        return time.perf_counter() - self._began

    def stop(self) -> None:
        self.last, self.taken = self.running, self.taken + 1
        self.steps, self.busy, self.seconds = self.steps + 1, self.busy + self.last, self.seconds + self.last

    def steps_in(self, seconds: float) -> int:
        """Number of steps that fit into the rest of `seconds`, judging by the latest step (the first are slower)."""
        return max(1, int((seconds - self.seconds) / self.last))

    def left(self, steps: int) -> timedelta:
        return timedelta(seconds=round(steps * self.busy / self.steps))

    def figures(self) -> dict[str, float]:
        speed = self.steps * self.tokens_per_step / self.busy
        return {
            "tokens_per_second": speed,
            "mfu": self.peak and speed * self.flops_per_token / self.peak,
            "measured_mfu": speed * self.flops_per_token / self.measured,
            "data_wait": self.waited / self.busy,
            "seconds": self.seconds,
        }


def slowest_rank(times: list[list[float]], step: float) -> tuple[dict, str | None]:
    """The slowest of several processes, for the metrics, and a line for the log if it keeps the others waiting.

    Args:
        times: for each process, the seconds of a step before it waits for others, and those of them spent on its data.
        step: seconds of a whole step.
    Returns:
        ({"rank", "seconds", "median"}, the line or None). The line is there if the slowest takes a fifth longer than
        the (lower) median and the difference is a twentieth of a step; both ours.
    """
    alone = [seconds for seconds, _ in times]
    slowest, median = max(range(len(alone)), key=alone.__getitem__), statistics.median_low(alone)
    seconds, waited = times[slowest]
    found = {"rank": slowest, "seconds": seconds, "median": median}
    if seconds < 1.2 * median or seconds - median < 0.05 * step:
        return found, None
    return found, (
        f"rank {slowest} is slow: {seconds:.2g} s of a step before it meets the others ({waited:.2g} s waiting for "
        f"data), the median rank {median:.2g} s"
    )


def log_line(row: dict) -> str:
    """The log line of a row of metrics."""
    parts = [f"loss {row['loss']:.4f}" if "loss" in row else "loss not finite"]
    parts += [f"{name} {row[key]:.4f}" for key, name in SHOWN.items() if row.get(key)]
    parts += [f"lr {row['learning_rate']:.2e}", f"norm {row['grad_norm'] or math.inf:.2f}"]
    mfu = "" if row["mfu"] is None else f"MFU {row['mfu']:.0%}, "
    parts += [f"{row['tokens_per_second']:,.0f} tok/s", f"{mfu}{row['measured_mfu']:.0%} of the measured peak"]
    parts += [f"data wait {row['data_wait']:.1%}"]
    return " | ".join(parts + ([f"{row['skipped_steps']} steps skipped"] if row["skipped_steps"] else []))


def validation_line(row: dict) -> str:
    by_source = row.get("val_losses", {})
    shown = {"loss": row["val_loss"]} | (by_source if len(by_source) > 1 else {})
    shown |= {"accuracy": row["val_accuracy"]} if "val_accuracy" in row else {}
    parts = [f"{name} {'not finite' if value is None else f'{value:.4f}'}" for name, value in shown.items()]
    return f"{', '.join(parts)} ({row['val_rows']} rows)"


@torch.no_grad()
def update_ratios(model, optimizer) -> dict[str, float]:
    """Part of the model -> size of the last step divided by the size of its weights, both as root mean squares.

    Computed from the moments after the step, so that no copy of the weights is needed. About 1e-3 is usual with AdamW.
    A much larger ratio points to divergence, a much smaller one to a learning rate that is too low. The host reads one
    tensor for all parameters, so that it waits for the device once. Sharded weights are summed over their processes in
    one exchange, so all of them call this.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    sums: dict[str, list[torch.Tensor]] = {}
    shards = None
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            if hasattr(parameter, "device_mesh"):  # FSDP2 shards all weights alike
                shards = parameter
            state, weight = {key: _local(value) for key, value in state.items()}, _local(parameter)
            update = (_of_muon if is_muon(group) else _of_adamw)(group, state, weight)
            update += group["weight_decay"] * weight
            part = next((part for part, signs in PARTS.items() if any(s in names[parameter] for s in signs)), "other")
            found = torch.stack([_square(update) * group["lr"] ** 2, _square(weight)])
            sums[part] = sums[part] + found if part in sums else found
    if not sums:
        return {}
    table = torch.stack(list(sums.values()))  # (parts, 2)
    if shards is not None:
        for dim, placement in enumerate(shards.placements):
            if placement.is_shard():
                dist.all_reduce(table, group=shards.device_mesh.get_group(dim))
    rows = zip(sums, table.tolist(), strict=True)
    return {part: (update / weight) ** 0.5 for part, (update, weight) in rows if weight}


def _of_adamw(group: dict, state: dict, parameter: torch.Tensor) -> torch.Tensor:
    """AdamW's last step without its decay, at a learning rate of 1."""
    (beta1, beta2), step = group["betas"], state["step"]  # a tensor of the device with the fused AdamW
    scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
    return state["exp_avg"] / (1 - beta1**step) / scale


def _of_muon(group: dict, state: dict, parameter: torch.Tensor) -> torch.Tensor:
    """Muon's last step without its decay, at a learning rate of 1, up to a few per cent of its size.

    Nesterov's look-ahead is left out, because the gradient is gone; it turns the step, whose size hardly changes.
    """
    moved = torch.nn.Parameter(torch.zeros_like(parameter))
    moved.grad = state["momentum_buffer"]
    settings = {key: group[key] for key in ("ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
    torch.optim.Muon([moved], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, **settings).step()
    return -moved.detach()


def _local(tensor):
    """This process's part of a sharded tensor; anything else as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _square(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the squares, () on the tensor's device."""
    return tensor.float().norm().square()


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process so far, in MB: on the device, or on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def starved(waited: float, has_pixels: bool) -> str:
    """The warning for a run that waits for its data. has_pixels: whether rows are tokenized while training."""
    advice = "tokenize the media first (toto tokenize)" if has_pixels else "put the shards on a faster disk"
    share = f"{waited:.0%} of the time since the last line was spent waiting"
    return f"The data is too slow for the device: {share}; {advice}."


def write_loss_maps(run: Path, step: int, config, maps: dict[str, torch.Tensor]) -> None:
    """Write RUN/loss_maps.json: the mean validation loss at every position of a row, per source.

    maps: name -> (T * tokens_per_frame,) in the order of a row.
    """
    content = {
        "step": step,
        "num_frames": config.num_frames,
        "grid": list(config.grid_size or (1, config.tokens_per_frame)),
        "sources": {name: losses.tolist() for name, losses in maps.items()},
    }
    write_whole(run / "loss_maps.json", lambda path: path.write_text(json.dumps(content) + "\n"))
