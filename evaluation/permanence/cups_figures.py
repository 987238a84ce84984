"""The figure of `toto permanence cups`: accuracy by stratum against controls, and by layer."""

from __future__ import annotations

from pathlib import Path

from evaluation.permanence.cups_results import CupsResult
from evaluation.permanence.cups_tables import NAMES
from evaluation.report.figures import GREY, MODEL, PIXELS, PURPLE, SERIES, UNTRAINED, new_figure

COLOURS = {
    "model": MODEL,
    "last_frame": "#56B4E9",
    "shuffled": PIXELS,
    "untrained": UNTRAINED,
    "last_seen": PURPLE,
    "any_cup": "#B07A00",
    "majority": GREY,
}


def draw(result: CupsResult, file: Path) -> None:
    """Left: accuracy of all predictors by stratum, with 95 % intervals. Right: the model's by layer."""
    figure, axes = new_figure(12.5, 4.6, (1, 2))
    bars, curves = axes[0]
    strata = [name for name in result.predictors["model"].strata if name != "all"]
    width = 0.84 / len(result.predictors)
    for k, (name, each) in enumerate(result.predictors.items()):
        for place, stratum in enumerate(strata):
            score = each.strata[stratum]
            at = place - 0.42 + (k + 0.5) * width
            label = NAMES[name] if place == 0 else None
            bars.bar(at, 100 * score.accuracy, 0.9 * width, color=COLOURS[name], label=label)
            bars.plot([at, at], [100 * bound for bound in score.ci95], color="#30363d", linewidth=1)
    counts = [result.predictors["model"].strata[stratum].clips for stratum in strata]
    bars.set_xticks(range(len(strata)), [f"{s}\n{n} clips" for s, n in zip(strata, counts, strict=True)])
    bars.set_ylim(0, 102)
    bars.set_title("Cell of the object right, % of test clips", fontsize=11)
    rows = result.predictors["model"].layers
    for stratum, (colour, marker) in zip(strata, SERIES, strict=False):
        curves.plot(
            [row.layer for row in rows],
            [100 * row.accuracy[stratum] for row in rows],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.8,
            label=stratum,
        )
    curves.axvline(result.predictors["model"].layer, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    curves.set_xticks([row.layer for row in rows])
    curves.set_xlabel("layer of the model (dashed: chosen on validation)")
    curves.set_ylim(0, 102)
    curves.set_title("by layer, %", fontsize=11)
    curves.legend(frameon=False, fontsize=9)
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(file, format="png", dpi=80)
