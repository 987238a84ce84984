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


@dataclass(frozen=True)
class Step:
    """A command of the demo. says: what it does, in a line. made: the path that exists once it has run."""

    says: str
    command: list[str]
    made: Path


def steps(args: DemoArgs) -> list[Step]:
    """The steps of the demo in order."""
    out = Path(args.output)
    run = out / "run"
    nano, motion = (Path(os.path.relpath(folder)) for folder in (NANO, MOTION))  # as a user would type it
    seed = ["--seed", str(args.seed)]
    items = ["--max_train", str(args.max_train), "--max_eval", str(args.max_eval)]

    def tokenize(split: str, clips: int) -> Step:
        folder = out / "shards" / split
        world = ["--dataset", "toyworld:motion", "--tokenizer", os.path.relpath(TOKENIZER), "--num_frames", "4", *seed]
        flags = ["--split", split, "--max_clips", str(clips), "--output", str(folder)]
        says = f"{clips:,} drawn clips of the embedded world become visual tokens ({split})."
        return Step(says, ["tokenize", *world, *flags], folder / "manifest.json")

    def generate(model: Path, name: str, prompt: int, drawn: int) -> Step:
        folder = out / "generated" / name
        flags = ["--video", "toyworld:motion:3", "toyworld:motion:7", "--output", str(folder)]
        flags += ["--num_prompt_frames", str(prompt), "--num_frames", str(drawn), "--temperature", "0"]
        says = f"{name} sees {prompt} frames of two test clips and draws the next {drawn}."
        return Step(says, ["generate", "--model", str(model), *flags], folder)

    def probed(model: Path, name: str, dataset: str, labels: tuple[str, ...], frames: int) -> Step:
        file = out / "results" / f"{name}.json"
        task = ["--dataset", dataset, *seed, "--label_column", *labels, "--layers", "all", "--heads", "linear", *items]
        says = (
            f"What do its layers know ({', '.join(labels)})? Linear probes of every layer, of the same layers "
            "untrained (random weights), which read the same tokens, and of raw pixels."
        )
        return Step(
            says, ["probe", "--model", str(model), *task, "--num_frames", str(frames), "--output", str(file)], file
        )

    pretrain = ["pretrain", "--recipe", "motion_tiny"]
    pretrain += ["--shards", str(out / "shards" / "train"), "--val_shards", str(out / "shards" / "validation")]
    pretrain += ["--max_minutes", str(args.train_minutes), "--seed", str(args.seed), "--output_dir", str(run)]
    report = ["report", "--results", str(out / "results"), "--runs", str(run), "--generations"]
    report += [str(out / "generated" / name) for name in ("toto-motion", "trained-now")]
    page = out / "report.html"
    return [
        tokenize("train", args.train_clips),
        tokenize("validation", 256),
        Step(f"A tiny Toto learns from scratch for {args.train_minutes:g} minutes.", pretrain, run / "checkpoints"),
        generate(motion, "toto-motion", 8, 8),
        generate(run, "trained-now", 3, 3),
        probed(nano, "probe", "toyworld", LABELS, 2),
        probed(run, "probe_trained", LONE, ("motion",), 4),
        Step("Everything on one page.", [*report, "--output", str(page)], page),
    ]


def main(argv: list[str] | None = None) -> None:
    description = "Run the whole path on a CPU in about ten minutes: tokenize, pretrain, generate, probe, report."
    (args,) = parse((DemoArgs,), argv, "toto demo", description)
    if missing := [str(folder) for folder in (NANO, MOTION) if not (folder / "config.json").is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing; run the demo from a clone of the project, which has it.")

    import importlib

    from toto_cli import VERBS

    began = time.time()
    todo = steps(args)
    for number, step in enumerate(todo, start=1):
        print(f"\n[{number}/{len(todo)}] {step.says}\n$ toto {shlex.join(step.command)}", flush=True)
        verb, *flags = step.command
        if verb == "pretrain" and (Path(args.output) / "run").exists():
            flags = _continued(Path(args.output) / "run", flags)
            if flags is None:
                print("    done before")
                continue
        elif verb != "report" and step.made.exists():
            print("    done before")
            continue
        with silent():
            importlib.import_module(VERBS[verb][0]).main(flags)
    print(f"\nThe demo took {(time.time() - began) / 60:.1f} minutes. Open {todo[-1].made}")
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
