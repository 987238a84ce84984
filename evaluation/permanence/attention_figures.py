"""Figures of `toto permanence attention`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.permanence.attention_results import AttentionResult

PANELS = {
    "sighting": "to the last sighting",
    "matched": "as many tokens, as far away",
    "never": "nothing hides the object",
}


def draw_heads(result: AttentionResult, file: Path) -> None:
    """Attention in every block and head, the three panels on one scale; crosses: the chosen heads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps = {name: [[100 * value for value in row] for row in result.looks[name]] for name in PANELS}
    top = max(max(max(row) for row in each) for each in maps.values())
    blocks, heads = len(maps["sighting"]), len(maps["sighting"][0])
    figure = Figure(figsize=(2.2 + 3 * max(1.6, 0.36 * heads), 1.5 + 0.34 * blocks), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(maps), sharey=True)
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        image = axes.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axes.set_title(PANELS[name], fontsize=9)
        axes.set_xticks(range(heads))
        axes.set_yticks(range(blocks), [str(block + 1) for block in range(blocks)])
        axes.set_xlabel("head", fontsize=9)
        for row in result.chosen:
            for colour, width in (("black", 3.6), ("white", 1.6)):
                axes.plot(row.head, row.block - 1, marker="x", color=colour, markersize=8, markeredgewidth=width)
    panels[0].set_ylabel("block", fontsize=9)
    figure.colorbar(image, ax=list(panels), label="attention, %", shrink=0.9)
    figure.savefig(file, dpi=130, format="png")
