"""A step of a study: a command, the path that exists once it is done, the search that gives its learning rate."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What pre-trains a ViT-MAE or an ImageGPT: `python -m PEER`.
PEER = "studies.probing.pretrain_peer"


@dataclass(frozen=True)
class Step:
    """One command.

    made: path that exists once it is done. command: a verb of `toto`, or PEER for a peer's pre-training, and its flags.
    rates: {learning rate: run, or its validation loss} of the search that gives its learning rate; None if it needs
    none.
    """

    name: str
    made: Path
    command: list[str]
    rates: dict[str, Path | float] | None = None

    def line(self) -> list[str]:
        """The command with its learning rate. Raises FileNotFoundError if the search is not done."""
        return self.command if self.rates is None else [*self.command, "--learning_rate", best_rate(self.rates)]

    def listed(self, done: bool | None = None) -> str:
        """A line of --list: whether it is done (None: whether `made` exists), its name, its command."""
        try:
            line = self.line()
        except FileNotFoundError:
            line = [*self.command, "--learning_rate", "<of the search>"]
        done = self.made.exists() if done is None else done
        return f"[{'done' if done else '    '}] {self.name:<32} {shlex.join(line)}"


def validation_loss(run: Path) -> float:
    """The last validation loss of a run of `toto pretrain`, or of a peer. Raises FileNotFoundError if it has none."""
    if (run / "study.json").is_file():
        return json.loads((run / "study.json").read_text())["val_loss"]
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines() if '"val_loss"' in row]
    if not rows:
        raise FileNotFoundError(f"{run} has no validation loss yet; run the steps search/ first.")
    return rows[-1]["val_loss"]


def best_rate(rates: dict[str, Path | float]) -> str:
    """The learning rate of the lowest validation loss. Raises FileNotFoundError if a run has none yet."""
    losses = {rate: run if isinstance(run, float) else validation_loss(run) for rate, run in rates.items()}
    return min(losses, key=losses.__getitem__)


def flags(**values) -> list[str]:
    """Flags of a command line: lists become several words, True becomes the flag alone, None is left out."""
    found: list[str] = []
    for name, value in values.items():
        if value is True:
            found.append(f"--{name}")
        elif value is not None:
            found += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return found


def carry_out(step: Step, work: Path, threads: int) -> None:
    """Run a step, and write the time that it took to `work`/times.

    Raises:
        FileNotFoundError: its search is not done.
        subprocess.CalledProcessError: it failed.
    """
    from tokenization.files import write_json
    from toto_cli import VERBS

    verb, *rest = step.line()
    if verb in ("pretrain", "finetune"):
        run = Path(rest[rest.index("--output_dir") + 1])
        rest = ["--resume", str(run)] if (run / "recipe.yaml").is_file() else rest
    shown = ["python", "-m", PEER] if verb == PEER else ["toto", verb]
    print(f"$ {shlex.join([*shown, *rest])}", flush=True)
    module = PEER if verb == PEER else VERBS[verb][0]
    surroundings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        subprocess.run([sys.executable, "-m", module, *rest], cwd=ROOT, env=os.environ | surroundings, check=True)
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        file = work / "times" / f"{step.name}.json"
        earlier = json.loads(file.read_text()) if file.is_file() else {"cpu_seconds": 0.0, "seconds": 0.0}
        spent = {"cpu_seconds": cpu, "seconds": time.monotonic() - began}
        write_json(file, {key: earlier[key] + spent[key] for key in spent})
    if verb == "probe":
        shutil.rmtree(work / "features" / step.made.stem, ignore_errors=True)
