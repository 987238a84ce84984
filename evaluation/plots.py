"""How figures look here and become inline SVG; the report's figure of loss against the simple predictors."""

from __future__ import annotations

import html
import io
import re

# Okabe and Ito's colours; lines also differ in dashes or markers, so that colour is never the only sign.
MODEL, UNTRAINED, PIXELS, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#5f6670", "#9a4f80"
PREDICTORS = {
    "unigram": ("unigram", GREY, (0, (1, 2))),
    "bigram": ("bigram", PURPLE, (0, (4, 2))),
    "previous_frame": ("previous frame", PIXELS, (0, (6, 2, 1, 2))),
}


def new_figure(width: float, height: float, grid: tuple[int, int] | None = None):
    """A figure and its axes, in inches (72 SVG units each), with the page's plain look; nothing global is touched.

    grid: rows and columns of panels; the axes are then an array of that shape.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if grid:
        axes = figure.subplots(*grid, squeeze=False)
        for panel in axes.flat:
            plain_axes(panel)
        return figure, axes
    axes = figure.add_subplot()
    plain_axes(axes)
    return figure, axes


def plain_axes(axes) -> None:
    """Light spines on two sides and a horizontal grid under everything."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa1a9")
    axes.tick_params(color="#9aa1a9", labelcolor="#30363d", labelsize=10)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def to_svg(figure, alt: str) -> str:
    """The figure as an <svg> that fills its container, is read aloud as `alt`, and shares no id with another."""
    import matplotlib

    buffer = io.StringIO()
    # text stays text (small, searchable); ids are hashed with the alt text, which no two figures share
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def spread(values: list[float], gap: float) -> list[float]:
    """Places for labels that want to stand at `values`: the same order, at least `gap` apart, about the same middle."""
    order = sorted(range(len(values)), key=values.__getitem__)
    placed = [values[i] for i in order]
    for _ in range(200):
        for k in range(len(placed) - 1):
            short = gap - (placed[k + 1] - placed[k])
            if short > 0:
                placed[k] -= short / 2
                placed[k + 1] += short / 2
    found = [0.0] * len(values)
    for i, place in zip(order, placed, strict=True):
        found[i] = place
    return found


def loss_svg(name: str, rows: list[dict], predictors: dict | None, unit: str) -> str:
    """Training and validation loss of a run over tokens, with the simple predictors as level lines.

    rows: of metrics.jsonl. predictors: of `ngrams.run_losses`, or None. unit: of the losses.
    """
    figure, axes = new_figure(5.6, 3.7)
    train = [row for row in rows if "loss" in row]
    validation = [row for row in rows if row.get("val_loss") is not None]
    million = [row.get("tokens", row["step"]) / 1e6 for row in train]
    axes.plot(million, [row["loss"] for row in train], color="#86b8d8", linewidth=1.4)
    labels = []
    if validation:
        places = [row.get("tokens", row["step"]) / 1e6 for row in validation]
        losses = [row["val_loss"] for row in validation]
        axes.plot(places, losses, color=MODEL, linewidth=2.2, marker="o", markersize=4)
        labels.append((losses[-1], f"validation {losses[-1]:.2f}", MODEL))
    elif train:
        labels.append((train[-1]["loss"], f"training {train[-1]['loss']:.2f}", MODEL))
    for key, (label, colour, style) in PREDICTORS.items():
        if predictors:
            axes.axhline(predictors[key], color=colour, linewidth=1.6, linestyle=style)
            labels.append((predictors[key], f"{label} {predictors[key]:.2f}", colour))
    low, high = axes.get_ylim()
    heights = spread([value for value, _, _ in labels], (high - low) * 0.065)
    for place, (_, label, colour) in zip(heights, labels, strict=True):
        axes.annotate(label, (1.02, place), xycoords=("axes fraction", "data"), color=colour, fontsize=10, va="center")
    axes.set_xlabel("million tokens" if "tokens" in (rows or [{}])[0] else "million steps", fontsize=10)
    axes.set_ylabel(unit, fontsize=10)
    told = "; ".join(label for _, label, _ in labels)
    return to_svg(figure, f"Loss of {name} over training, in {unit}. At the end: {told}.")
