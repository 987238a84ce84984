"""`toto robot`: one sub-command per step from demonstrations to a policy that acts."""

from __future__ import annotations

from tokenization.terminal.actions import run_action

ACTIONS = {
    "collect": ("evaluation.robot.collect", "record demonstrations of a scripted expert, or clips for toto tokenize"),
    "train": ("evaluation.robot.train", "train a policy on a folder of episodes, by behaviour cloning or DAgger"),
    "evaluate": ("evaluation.robot.evaluate", "measure a policy's success over simulated episodes"),
    "policy": ("evaluation.robot.serve", "load a policy and answer observations, as a control loop does"),
    "arms": ("evaluation.robot.arms", "compare what policies see: gripper only, pixels, untrained, Toto, others"),
}


def usage() -> str:
    width = max(map(len, ACTIONS))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in ACTIONS.items())
    more = (
        "Simulators need Meta-World (pip install 'modeling-toto[robots]'); training from a folder of episodes does not."
        "\n`toto robot <action> --help` explains its flags."
    )
    return f"usage: toto robot <action> [flags]\n\n{lines}\n\n{more}"


def main(argv: list[str] | None = None) -> None:
    run_action(argv, "robot", "action", ACTIONS, usage)
