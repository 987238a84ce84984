"""`toto prompt`: makes a Toto promptable, prompts it, and scores it, with one sub-command each."""

from __future__ import annotations

from tokenization.terminal.actions import run_action

ACTIONS = {
    "train": ("training.prompting.command", "tune a Toto on rows of images and labels, about 1,000 steps"),
    "run": ("evaluation.prompt.draw_labels", "draw the labels of your pictures"),
    "rotation": ("evaluation.prompt.rotation", "continue turntables untuned; find the angle of each drawn frame"),
    "score": ("evaluation.prompt.score", "measure drawn labels on held-out scenes, next to controls and the ceiling"),
}

TEACH = """\
A prompt is a row of frames: images of a task with their labels, drawn as frames, and a last image whose label the
model draws (paper App. A.11). docs/prompting.md explains the rows, the colours and the controls.

  toto prompt train --model checkpoints/toto-motion --task all --steps 1000 --output_dir out/prompt
  toto prompt run --model out/prompt --task depth --inputs PICTURE.png --output out/depth.png
  toto prompt score --model out/prompt --task all --output out/prompt.json
"""


def usage() -> str:
    width = max(map(len, ACTIONS))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in ACTIONS.items())
    more = "`toto prompt <action> --help` explains its flags."
    return f"usage: toto prompt <action> [flags]\n\n{lines}\n\n{TEACH}\n{more}"


def main(argv: list[str] | None = None) -> None:
    run_action(argv, "prompt", "action", ACTIONS, usage)
