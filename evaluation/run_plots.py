"""Figures of pre-training runs: where in a row the loss is, and runs over each other against tokens and compute."""

from __future__ import annotations

from evaluation.plots import MODEL, PREDICTORS, new_figure, to_svg
from evaluation.reading import NATS

# Toto-large on Kinetics-400 validation, mean of each frame (paper Fig. 10, read off the figure).
PAPER_FRAMES = (6.59, 3.48, 3.19, 3.07, 3.01, 2.97, 2.95, 2.93, 2.91, 2.90, 2.89, 2.88, 2.88, 2.87, 2.87, 2.87)
# Okabe and Ito's, in an order whose neighbours differ; with dashes, so that colour is not the only sign.
RUN_STYLES = [
    (c, d) for d in ("-", (0, (5, 2)), (0, (1, 1.5))) for c in (MODEL, "#D55E00", "#009E73", "#9a4f80", "#111")
]
# Frames whose maps are shown, at most.
SHOWN = 8


def short(unit: str) -> str:
    """The unit without what it is taken over: nats, mean squared error."""
    return unit.partition(" per ")[0]


def frames_svg(name: str, source: str, maps: dict, predictors: dict | None, unit: str = NATS) -> str:
    """Validation loss along a row: every token (thin) and the mean of every frame, beside the simple predictors.

    maps: of `read_loss_maps`. predictors: name -> nats of every place, or None. unit: of the losses.
    """
    import numpy as np

    figure, axes = new_figure(5.6, 3.4)
    losses, frames = np.array(maps["sources"][source]), maps["num_frames"]
    places = 1 + (np.arange(len(losses)) + 0.5) * frames / len(losses)
    axes.plot(places, losses, color="#86b8d8", linewidth=0.7, label="every token")
    middles, means = 1.5 + np.arange(frames), losses.reshape(frames, -1).mean(1)
    axes.plot(middles, means, color=MODEL, linewidth=2, marker="o", markersize=4, label="mean of a frame")
    for key, (label, colour, style) in PREDICTORS.items():
        if predictors:
            each = np.array(predictors[key]).reshape(-1, len(losses) // frames).mean(1)
            each = np.resize(each, frames)  # of images, which have one frame, the same for each of the pack
            axes.plot(middles, each, color=colour, linewidth=1.5, linestyle=style, label=label)
    if frames == len(PAPER_FRAMES) and unit == NATS:
        axes.plot(middles, PAPER_FRAMES, color="#9aa1a9", linewidth=1, label="the paper's large (other tokens)")
    axes.set_xticks(middles, [str(frame + 1) for frame in range(frames)])
    axes.set_xlabel("frame", fontsize=10)
    axes.set_ylabel(unit, fontsize=10)
    axes.legend(frameon=False, fontsize=8.5, ncol=2)
    told = ", ".join(f"{mean:.2f}" for mean in means)
    return to_svg(
        figure, f"Validation loss of {name} on {source} along a row. Mean of each frame: {told} {short(unit)}."
    )


def map_svg(name: str, source: str, maps: dict, predictors: dict | None, unit: str = NATS) -> str:
    """Validation loss over rows and columns of the frames, the model above the simple predictors, one colour scale."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames, (h, w) = maps["num_frames"], maps["grid"]
    rows = {"model": np.array(maps["sources"][source]).reshape(frames, h, w)}
    for key, (label, *_) in PREDICTORS.items():
        if predictors:
            rows[label] = np.resize(np.array(predictors[key]).reshape(-1, h, w), (frames, h, w))
    shown = sorted({round(x) for x in np.linspace(0, frames - 1, min(frames, SHOWN))})
    low, high = (fold(each.min() if fold is min else each.max() for each in rows.values()) for fold in (min, max))
    figure = Figure(figsize=(1.05 * len(shown) + 1.7, 1.1 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(shown), squeeze=False)
    for line, (label, values) in zip(panels, rows.items(), strict=True):
        for axes, frame in zip(line, shown, strict=True):
            image = axes.imshow(values[frame], cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=9)
    for axes, frame in zip(panels[0], shown, strict=True):
        axes.set_title(f"frame {frame + 1}", fontsize=9)
    bar = figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.9, pad=0.02)
    bar.set_label(short(unit), fontsize=9)
    bar.outline.set_visible(False)
    alt = (
        f"Where in the frames the loss of {name} on {source} is: maps of frames {', '.join(str(f + 1) for f in shown)}"
    )
    return to_svg(figure, f"{alt}, for {', '.join(rows)}; from {low:.2f} to {high:.2f} {short(unit)}.")


def overlay_svg(runs: list[tuple[str, list[dict]]], against: str, unit: str = NATS) -> str:
    """Loss curves of several runs over each other (as the paper's figure 18): training thin, validation with dots.

    runs: (name, rows of metrics.jsonl). against: "tokens" or "flops". unit: of all their losses.
    Raises:
        ValueError: a run whose rows do not hold it.
    """
    figure, axes = new_figure(5.6, 3.8)
    for (name, rows), (colour, dashes) in zip(runs, RUN_STYLES * (1 + len(runs) // len(RUN_STYLES)), strict=False):
        train = [row for row in rows if "loss" in row and row.get(against)]
        if not train:
            raise ValueError(f"The run {name} does not log {against}; it is older than this version.")
        scale = train[-1][against] / train[-1]["tokens"]
        validation = [(row["tokens"] * scale, row["val_loss"]) for row in rows if row.get("val_loss") is not None]
        style = {"color": colour, "linestyle": dashes}
        axes.plot([row[against] for row in train], [row["loss"] for row in train], linewidth=0.8, alpha=0.45, **style)
        label = f"{name} {validation[-1][1]:.3f}" if validation else name
        axes.plot(
            *(zip(*validation, strict=True) if validation else ([], [])), **style, lw=2, marker="o", ms=4, label=label
        )
    axes.set_xscale("log")
    axes.set_xlabel({"tokens": "tokens", "flops": "training FLOPs"}[against], fontsize=10)
    axes.set_ylabel(unit, fontsize=10)
    axes.legend(frameon=False, fontsize=9, title="last validation loss", title_fontsize=9)
    return to_svg(figure, f"Loss against {against} of the runs {', '.join(name for name, _ in runs)}.")
