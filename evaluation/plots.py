"""The report's figures as inline SVG: loss against the simple predictors, probe accuracy per layer."""

from __future__ import annotations

import html
import io
import re

# Okabe and Ito's colours; lines also differ in dashes or markers, so that colour is never the only sign.
MODEL, UNTRAINED, PIXELS, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#5f6670", "#9a4f80"
STYLES = {
    "model": {"color": MODEL, "linewidth": 2.2, "marker": "o", "markersize": 3.5},
    "untrained": {"color": UNTRAINED, "linewidth": 1.8, "marker": "^", "markersize": 5},
    "pixels": {"color": PIXELS, "linewidth": 1.8, "linestyle": (0, (6, 2, 1, 2))},
    "chance": {"color": GREY, "linewidth": 1.4, "linestyle": (0, (1, 2))},
}
HEAD_STYLES = {"linear": "-", "attention": (0, (4, 2))}
PREDICTORS = {
    "unigram": ("unigram", GREY, (0, (1, 2))),
    "bigram": ("bigram", PURPLE, (0, (4, 2))),
    "previous_frame": ("previous frame", PIXELS, (0, (6, 2, 1, 2))),
}


def new_figure(width: float, height: float):
    """A figure and its axes, in inches (72 SVG units each), with the page's plain look; nothing global is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa1a9")
    axes.tick_params(color="#9aa1a9", labelcolor="#30363d", labelsize=10)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


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


def loss_svg(name: str, rows: list[dict], predictors: dict | None) -> str:
    """Training and validation loss of a run over tokens, with the simple predictors as level lines.

    rows: of metrics.jsonl. predictors: of `ngrams.run_losses`, or None.
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
    axes.set_ylabel("nats per code token", fontsize=10)
    told = "; ".join(label for _, label, _ in labels)
    return to_svg(figure, f"Loss of {name} over training, in nats per code token. At the end: {told}.")


def layers_svg(name: str, label: str, task: dict) -> str:
    """Test accuracy per layer with 95 % intervals: the model, its untrained twin, raw pixels, chance. A ring marks the
    layer and head chosen on validation. task: of a probe's result, every row with `ci95`."""
    figure, axes = new_figure(4.2, 3.2)
    best, baselines = task["best"], task["baselines"]
    curves = {"model": task["layers"], "untrained": baselines.get("untrained", {}).get("layers", [])}
    for who, rows in curves.items():
        for head in dict.fromkeys(row["head"] for row in rows):
            line = sorted((row for row in rows if row["head"] == head), key=lambda row: row["layer"])
            layers, low, high = ([pick(row) for row in line] for pick in (_layer, _low, _high))
            style = STYLES[who] | {"linestyle": HEAD_STYLES.get(head, "-")}
            axes.fill_between(layers, low, high, color=style["color"], alpha=0.13, linewidth=0)
            axes.plot(layers, [100 * row["accuracy"] for row in line], **style)
    for who in ("pixels", "untrained"):
        if who in baselines and not baselines[who].get("layers"):
            axes.axhline(100 * baselines[who]["accuracy"], **STYLES[who])
            axes.axhspan(_low(baselines[who]), _high(baselines[who]), color=STYLES[who]["color"], alpha=0.1, lw=0)
    if "chance" in task:
        axes.axhline(100 * task["chance"], **STYLES["chance"])
    axes.plot(best["layer"], 100 * best["accuracy"], "o", ms=11, mfc="none", mec="#111", mew=1.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.04)
    axes.set_title(label, fontsize=12, loc="left", fontweight="bold", color="#1f2328")
    axes.set_xlabel("layer (0 = embeddings)", fontsize=10)
    axes.set_ylabel("test accuracy, %", fontsize=10)
    others = ", ".join(f"{who} {100 * row['accuracy']:.1f} %" for who, row in baselines.items())
    alt = (
        f"Probe accuracy of {name} for {label}, per layer. Chosen on validation: layer {best['layer']}, {best['head']} "
        f"head, {100 * best['accuracy']:.1f} % on test. Baselines: {others or 'none'}."
    )
    return to_svg(figure, alt)


def _layer(row: dict) -> int:
    return row["layer"]


def _low(row: dict) -> float:
    return 100 * row["ci95"][0]


def _high(row: dict) -> float:
    return 100 * row["ci95"][1]
