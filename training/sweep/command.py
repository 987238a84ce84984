"""`toto sweep`: the same training over a grid of widths or rates, with one sub-command per question."""

from __future__ import annotations

from tokenization.terminal.actions import run_action

SWEEPS = {
    "coordinates": (
        "training.sweep.coordinates",
        "check muP: change of activations in 1 to 10 Adam steps against width, with and without muP",
    ),
    "mup": (
        "training.sweep.mup",
        "find the best learning rate at each width by short trainings over a grid, with and without muP",
    ),
}

TEACH = """\
With muP (paper App. A.7), the best learning rate of a narrow model is also that of a wide one. This requires that each
weight has the correct initial scale, learning rate and multiplier (modeling_toto/mup.py). `toto sweep coordinates`
checks this: with muP, no curve may rise or fall with the width; with standard parametrisation, they rise.

  toto sweep coordinates                                     minutes on a CPU; results/coordinates.json and .png
  toto sweep coordinates --preset a1 --widths 256 512 1024   another model, whose width is the base width
  toto sweep mup --shards SHARDS                             an hour on a CPU; results/mup_sweep.json and .png
  toto sweep mup --recipe sweep_paper --shards SHARDS        the paper's grid; one run at a time on every GPU
"""


def usage() -> str:
    width = max(map(len, SWEEPS))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in SWEEPS.items())
    more = "`toto sweep <sweep> --help` explains its flags."
    return f"usage: toto sweep <sweep> [flags]\n\n{lines}\n\n{TEACH}\n{more}"


def main(argv: list[str] | None = None) -> None:
    run_action(argv, "sweep", "sweep", SWEEPS, usage)
