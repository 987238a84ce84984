"""`toto sweep`: the same training over a grid of widths or rates; one sub-command per question."""

from __future__ import annotations

import importlib
import sys

SWEEPS = {
    "coordinates": (
        "training.sweep.coordinates",
        "is muP set up right? how far activations move in 1 to 10 Adam steps, over widths, beside a standard model",
    ),
    "mup": (
        "training.sweep.mup",
        "which learning rate is best at which width? short trainings over a grid, muP beside standard",
    ),
}

TEACH = """\
With muP (paper App. A.7) a learning rate found on a narrow model serves a wide one. It only does so if each weight has
the right initial scale, learning rate and multiplier (modeling_toto/mup.py), and `toto sweep coordinates` shows whether
it has: with muP no curve may rise or fall with the width; with standard parametrisation they rise.

  toto sweep coordinates                                     some minutes on a CPU; results/coordinates.json and .png
  toto sweep coordinates --preset a1 --widths 256 512 1024   around another model, which is the base width
  toto sweep mup --shards SHARDS                             an hour on a CPU; results/mup_sweep.json and .png
  toto sweep mup --recipe sweep_paper --shards SHARDS        the paper's grid; a run at a time on every GPU
"""


def usage() -> str:
    width = max(map(len, SWEEPS))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in SWEEPS.items())
    told = "`toto sweep <sweep> --help` explains its flags."
    return f"usage: toto sweep <sweep> [flags]\n\n{lines}\n\n{TEACH}\n{told}"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] not in SWEEPS:
        raise ValueError(f"There is no sweep '{argv[0]}'; the sweeps are {', '.join(SWEEPS)} (toto sweep --help).")
    importlib.import_module(SWEEPS[argv[0]][0]).main(argv[1:])
