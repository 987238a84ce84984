"""What a run tells: its rows in metrics.jsonl, its log lines, the time that its steps take."""

from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from pathlib import Path

from tokenization.files import write_whole

# Columns of a row of metrics.jsonl that a log line tells beside the loss, where they are there: and their names in it.
TOLD = {"end_loss": "end", "next_token_loss": "next", "accuracy": "acc"}


class MetricsFile:
    """metrics.jsonl of a run: a row at a time, flushed at once; cut back to a checkpoint's step on resume."""

    def __init__(self, path: Path, keep_up_to: int):
        rows = []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the torn last line of a killed run
                    continue
                if row["step"] <= keep_up_to:
                    rows.append(line)
            write_whole(path, lambda new: new.write_text("".join(f"{row}\n" for row in rows)))
        self._file = path.open("a")

    def write(self, row: dict) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def flat(row: dict, prefix: str = "") -> dict[str, float]:
    """The numbers of a row for a tracker, those inside it by "outer/inner"."""
    found = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            found[f"{prefix}{key}"] = value
    return found


def finite(value: float) -> float | None:
    """The number, or None, since JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None


class Clock:
    """Time of the steps since the last log line, and of the whole training, also before it was resumed."""

    def __init__(self, peak: float, flops_per_token: float, tokens_per_step: int):
        self.peak, self.tokens_per_step, self.flops_per_token = peak, tokens_per_step, flops_per_token
        self.seconds, self.taken = 0.0, 0
        self.reset()

    def reset(self) -> None:
        self.steps, self.busy, self.waited = 0, 0.0, 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    @property
    def running(self) -> float:
        return time.perf_counter() - self._began

    def stop(self) -> None:
        self.last, self.taken = self.running, self.taken + 1
        self.steps, self.busy, self.seconds = self.steps + 1, self.busy + self.last, self.seconds + self.last

    def steps_in(self, seconds: float) -> int:
        """Steps that fit into what is left of `seconds`. The first step warms caches up; the latest is the measure."""
        return max(1, int((seconds - self.seconds) / self.last))

    def left(self, steps: int) -> timedelta:
        return timedelta(seconds=round(steps * self.busy / self.steps))

    def figures(self) -> dict[str, float]:
        speed = self.steps / self.busy
        return {
            "tokens_per_second": speed * self.tokens_per_step,
            "mfu": speed * self.tokens_per_step * self.flops_per_token / self.peak,
            "data_wait": self.waited / self.busy,
            "seconds": self.seconds,
        }


def log_line(row: dict) -> str:
    """A log line."""
    parts = [f"loss {row['loss']:.4f}" if "loss" in row else "loss not finite"]
    parts += [f"{name} {row[key]:.4f}" for key, name in TOLD.items() if row.get(key)]
    parts += [f"lr {row['learning_rate']:.2e}", f"norm {row['grad_norm'] or math.inf:.2f}"]
    parts += [f"{row['tokens_per_second']:,.0f} tok/s", f"MFU {row['mfu']:.0%}", f"data wait {row['data_wait']:.1%}"]
    return " | ".join(parts + ([f"{row['skipped_steps']} steps skipped"] if row["skipped_steps"] else []))


def validation_line(row: dict) -> str:
    by_source = row.get("val_losses", {})
    shown = {"loss": row["val_loss"]} | (by_source if len(by_source) > 1 else {})
    shown |= {"accuracy": row["val_accuracy"]} if "val_accuracy" in row else {}
    parts = [f"{name} {'not finite' if value is None else f'{value:.4f}'}" for name, value in shown.items()]
    return f"{', '.join(parts)} ({row['val_rows']} rows)"
