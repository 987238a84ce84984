"""`toto demo`: the whole path on a laptop CPU; each command is printed before it runs.

tokenize -> pretrain -> generate -> probe -> report, on the embedded world (nothing is downloaded). A demo that was
stopped resumes at the step it had reached.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from tokenization.terminal.next_command import say_next, silent
from training.flags import parse

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
NANO, MOTION = CHECKPOINTS / "toto-nano", CHECKPOINTS / "toto-motion"
TOKENIZER = MOTION / "visual_tokenizer"
LABELS = ("digit", "texture", "motion")
LONE = "toyworld:motion:max_objects=1"  # whose label "motion" is that of the only object


@dataclass(frozen=True)
class DemoArgs:
    """Flags of `toto demo`."""

    output: str = field(default="out/demo", metadata={"help": "folder for shards, run, results and report.html"})
    train_minutes: float = field(default=3.3, metadata={"help": "minutes to train the tiny model"})
    train_clips: int = field(default=6000, metadata={"help": "clips to tokenize for training"})
    max_train: int = field(default=1000, metadata={"help": "clips to train the probes on"})
    max_eval: int = field(default=1000, metadata={"help": "clips to test the probes on"})
    seed: int = field(default=0, metadata={"help": "seed of clips, weights and probes"})


def commands(args: DemoArgs) -> list[tuple[Path, list[str]]]:
    """The commands of the demo in order, each with the path that exists once it has run."""
    out = Path(args.output)
    run = out / "run"
    nano, motion = (Path(os.path.relpath(folder)) for folder in (NANO, MOTION))  # as a user would type it
    seed = ["--seed", str(args.seed)]
    items = ["--max_train", str(args.max_train), "--max_eval", str(args.max_eval)]

    def tokenize(split: str, clips: int) -> tuple[Path, list[str]]:
        folder = out / "shards" / split
        world = ["--dataset", "toyworld:motion", "--tokenizer", os.path.relpath(TOKENIZER), "--num_frames", "4", *seed]
        flags = ["--split", split, "--max_clips", str(clips), "--output", str(folder)]
        return folder / "manifest.json", ["tokenize", *world, *flags]

    def generate(model: Path, name: str, prompt: int, drawn: int) -> tuple[Path, list[str]]:
        folder = out / "generated" / name
        flags = ["--video", "toyworld:motion:3", "toyworld:motion:7", "--output", str(folder)]
        flags += ["--num_prompt_frames", str(prompt), "--num_frames", str(drawn), "--temperature", "0"]
        return folder, ["generate", "--model", str(model), *flags]

    def probed(model: Path, name: str, dataset: str, labels: tuple[str, ...], *more: str) -> tuple[Path, list[str]]:
        file = out / "results" / f"{name}.json"
        task = ["--dataset", dataset, *seed, "--label_column", *labels, "--layers", "all", "--heads", "linear", *items]
        return file, ["probe", "--model", str(model), *task, *more, "--output", str(file)]

    pretrain = ["pretrain", "--recipe", "motion_tiny"]
    pretrain += ["--shards", str(out / "shards" / "train"), "--val_shards", str(out / "shards" / "validation")]
    pretrain += ["--max_minutes", str(args.train_minutes), "--seed", str(args.seed), "--output_dir", str(run)]
    report = ["report", "--results", str(out / "results"), "--runs", str(run), "--generations"]
    report += [str(out / "generated" / name) for name in ("toto-motion", "trained-now")]
    return [
        tokenize("train", args.train_clips),
        tokenize("validation", 256),
        (run / "checkpoints", pretrain),
        generate(motion, "toto-motion", 8, 8),
        generate(run, "trained-now", 3, 3),
        # toto-nano has four times as many tokens per frame; its card compares it with its untrained twin.
        probed(nano, "probe", "toyworld", LABELS, "--num_frames", "2", "--baselines", "pixels"),
        probed(run, "probe_trained", LONE, ("motion",), "--num_frames", "4"),
        (out / "report.html", [*report, "--output", str(out / "report.html")]),
    ]


def main(argv: list[str] | None = None) -> None:
    description = "Run the whole path on a CPU in about ten minutes: tokenize, pretrain, generate, probe, report."
    (args,) = parse((DemoArgs,), argv, "toto demo", description)
    if missing := [str(folder) for folder in (NANO, MOTION) if not (folder / "config.json").is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing; run the demo from a clone of the project, which has it.")

    import importlib

    from toto_cli import VERBS

    began = time.time()
    steps = commands(args)
    for number, (made, command) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] $ toto {shlex.join(command)}", flush=True)
        verb, *flags = command
        if verb == "pretrain" and (Path(args.output) / "run").exists():
            flags = _continued(Path(args.output) / "run", flags)
            if flags is None:
                print("    done before")
                continue
        elif verb != "report" and made.exists():
            print("    done before")
            continue
        with silent():
            importlib.import_module(VERBS[verb][0]).main(flags)
    print(f"\nThe demo took {(time.time() - began) / 60:.1f} minutes. Open {steps[-1][0]}")
    say_next("tokenize", "--help")


def _continued(run: Path, flags: list[str]) -> list[str] | None:
    """Flags that resume a stopped run; None if it is finished. A run without a checkpoint starts again."""
    import json

    from training import find_model

    found = find_model.steps(run)
    if not found:
        shutil.rmtree(run)
        return flags
    state = json.loads((found[-1] / find_model.STATE / "loop.json").read_text())
    return None if state["step"] >= state["max_steps"] else ["--resume", str(run)]


if __name__ == "__main__":
    from toto_cli import run

    run(main)
