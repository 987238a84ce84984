"""The table of what policies see, for simulated tasks, from demonstrations to docs/studies/robots/TASK.json.

`python -m studies.robots --work out/robots --vision RUN ...` records demonstrations of every task and runs
`toto robot arms` on them; each command is printed before it runs. What is finished is not run again, and arms are added
to a finished table. Vision models are to be trained before (`python -m studies.probing.run --only pretrain/images
pretrain/mae`, `toto pretrain --recipe toto_robot`). Results are copied without the work folder's name, and one success
and one failure of the Toto with them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from studies.probing.steps import ROOT, Step, carry_out, flags
from tokenization.terminal.command_line import parse_flags

TASKS = ["drawer-open-v3", "pick-place-v3", "button-press-topdown-v3"]
ARMS = ["proprio", "oracle", "pixels", "untrained", "toto"]


@dataclass(frozen=True)
class RobotsArgs:
    work: str = field(metadata={"help": "folder for demonstrations and raw results"})
    output: str = field(default="docs/studies/robots", metadata={"help": "folder of the committed results"})
    tasks: list[str] = field(default_factory=lambda: TASKS, metadata={"help": "tasks of the simulator"})
    model: str = field(default="checkpoints/toto-nano", metadata={"help": "the Toto of the arms toto and untrained"})
    vision: list[str] = field(default_factory=list, metadata={"help": "more models, an arm each"})
    demonstrations: int = field(default=25, metadata={"help": "per task"})
    threads: int = field(default=1, metadata={"help": "threads of a step"})
    show: bool = field(
        default=False, metadata={"aliases": ["--list"], "help": "list the steps and whether they are done; run nothing"}
    )


def steps(args: RobotsArgs) -> list[Step]:
    """Demonstrations and the table of every task."""
    found, work = [], Path(args.work)
    for task in args.tasks:
        folder, table = work / task, work / f"{task}.json"
        record = flags(task=task, episodes=args.demonstrations, output=folder)
        found.append(Step(f"collect/{task}", folder / "meta" / "info.json", ["robot", "collect", *record]))
        arms = [*ARMS, *(f"vision:{model}" for model in args.vision)]
        compare = flags(episodes=folder, model=args.model, arms=arms, output=table)
        found.append(Step(f"arms/{task}", table, ["robot", "arms", *compare]))
    return found


def is_done(step: Step) -> bool:
    """Whether what it makes exists; of a table, whether it has every arm."""
    if not step.made.exists() or not step.name.startswith("arms/"):
        return step.made.exists()
    named = step.command[step.command.index("--arms") + 1 : step.command.index("--output")]
    return set(named) <= set(json.loads(step.made.read_text())["arms"])


def publish(table: Path, output: Path) -> None:
    """Copy a result and the Toto's videos; the work folder in it becomes out/robots."""
    from tokenization.files import write_json

    text = table.read_text().replace(f"{table.parent}/", "out/robots/")
    write_json(output / table.name, json.loads(text))
    for seed in json.loads(text)["arms"]["toto"]["seeds"]:
        for video in seed.get("videos") or []:
            if video.endswith(".mp4"):
                shutil.copyfile(table.with_name(video), output / video)


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(RobotsArgs, argv, "python -m studies.robots", __doc__)
    for step in steps(args):
        if args.show:
            print(step.listed(is_done(step)))
        elif not is_done(step):
            try:
                carry_out(step, Path(args.work), args.threads)
            except subprocess.CalledProcessError as error:
                raise ValueError(f"The step {step.name} failed; its message is above.") from error
        if step.name.startswith("arms/") and not args.show:
            publish(step.made, ROOT / args.output)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
