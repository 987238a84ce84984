"""Figures of pre-training runs: losses over tokens, along a row, over the frame, and of several runs."""

from __future__ import annotations

from evaluation.report.figures import GREY, MODEL, PIXELS, PURPLE, label_levels, new_figure, short_ticks, to_svg
from evaluation.report.reading import NATS

PREDICTORS = {
    "unigram": ("unigram", GREY, (0, (1, 2))),
    "bigram": ("bigram", PURPLE, (0, (4, 2))),
    "previous_frame": ("previous frame", PIXELS, (0, (6, 2, 1, 2))),
}
# Toto-large on Kinetics-400 validation, mean of each frame (paper Fig. 10, read off the figure).
PAPER_FRAMES = (6.59, 3.48, 3.19, 3.07, 3.01, 2.97, 2.95, 2.93, 2.91, 2.90, 2.89, 2.88, 2.88, 2.87, 2.87, 2.87)
# Colours and dashes of runs in one figure, in an order whose neighbours differ.
RUN_STYLES = [
    (c, d) for d in ("-", (0, (5, 2)), (0, (1, 1.5))) for c in (MODEL, "#D55E00", "#009E73", "#9a4f80", "#111")
]
# Most frames whose maps are shown: as many as keep their labels legible on a phone.
SHOWN = 4


def has_curve(rows: list[dict]) -> bool:
    """Do rows of metrics.jsonl make a line: two places with a training loss, or two with a validation loss?"""
    return any(len({row["step"] for row in rows if row.get(key) is not None}) > 1 for key in ("loss", "val_loss"))


def loss_svg(name: str, rows: list[dict], predictors: dict | None, unit: str) -> str:
    """Training and validation loss of a run over tokens, with the simple predictors as level lines.

    rows: of metrics.jsonl. predictors: of `predictors.run_losses`, or None. unit: of the losses.
    """
    figure, axes = new_figure(5.2, 3.5)
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
    label_levels(axes, labels)
    axes.set_xlabel("million tokens" if "tokens" in (rows or [{}])[0] else "million steps", fontsize=10)
    axes.set_ylabel(unit, fontsize=10)
    ends = "; ".join(label for _, label, _ in labels)
    return to_svg(figure, f"Loss of {name} over training, in {unit}. At the end: {ends}.")


def short(unit: str) -> str:
    """The unit without what it is taken over: nats, mean squared error."""
    return unit.partition(" per ")[0]


def frames_svg(name: str, source: str, maps: dict, predictors: dict | None, unit: str = NATS) -> str:
    """Validation loss along a row: of every token (thin) and the mean of every frame, with the simple predictors.

    maps: of `reading.read_loss_maps`. predictors: name -> nats of every place, or None. unit: of the losses.
    """
    import numpy as np

    figure, axes = new_figure(5.2, 3.8)
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
    figure.legend(frameon=False, fontsize=9.5, ncols=2, loc="outside lower center")
    each = ", ".join(f"{mean:.2f}" for mean in means)
    return to_svg(
        figure, f"Validation loss of {name} on {source} along a row. Mean of each frame: {each} {short(unit)}."
    )


def map_svg(name: str, source: str, maps: dict, predictors: dict | None, unit: str = NATS) -> str:
    """Validation loss over rows and columns of the frames: the model, then the simple predictors; one colour scale."""
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
    figure = Figure(figsize=(1.0 * len(shown) + 1.5, 1.05 * len(rows) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(shown), squeeze=False)
    for line, (label, values) in zip(panels, rows.items(), strict=True):
        for axes, frame in zip(line, shown, strict=True):
            image = axes.imshow(values[frame], cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label.replace(" ", "\n"), fontsize=11)
    for axes, frame in zip(panels[0], shown, strict=True):
        axes.set_title(f"frame {frame + 1}", fontsize=11)
    bar = figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.9, pad=0.02)
    bar.set_label(short(unit), fontsize=11)
    bar.ax.tick_params(labelsize=10)
    bar.outline.set_visible(False)
    alt = (
        f"Where in the frames the loss of {name} on {source} is: maps of frames {', '.join(str(f + 1) for f in shown)}"
    )
    return to_svg(figure, f"{alt}, for {', '.join(rows)}; from {low:.2f} to {high:.2f} {short(unit)}.")


def overlay_svg(runs: list[tuple[str, list[dict]]], against: str, unit: str = NATS) -> str:
    """Loss curves of several runs over each other (as the paper's figure 18): training thin, validation with dots.

    runs: (name, rows of metrics.jsonl). against: "tokens" or "flops". unit: of all their losses.
    Raises:
        ValueError: the rows of a run do not have `against`.
    """
    figure, axes = new_figure(5.2, 3.6)
    for (name, rows), (colour, dashes) in zip(runs, RUN_STYLES * (1 + len(runs) // len(RUN_STYLES)), strict=False):
        train = [row for row in rows if "loss" in row and row.get(against)]
        if not train:
            raise ValueError(f"The run {name} does not log {against}; it is older than this version; leave it out.")
        scale = train[-1][against] / train[-1]["tokens"]
        validation = [(row["tokens"] * scale, row["val_loss"]) for row in rows if row.get("val_loss") is not None]
        style = {"color": colour, "linestyle": dashes}
        axes.plot([row[against] for row in train], [row["loss"] for row in train], linewidth=0.8, alpha=0.45, **style)
        label = f"{name} {validation[-1][1]:.3f}" if validation else name
        axes.plot(
            *(zip(*validation, strict=True) if validation else ([], [])), **style, lw=2, marker="o", ms=4, label=label
        )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    short_ticks(axes.xaxis, high > 30 * low)
    axes.set_xlabel({"tokens": "tokens", "flops": "training FLOPs"}[against], fontsize=10)
    axes.set_ylabel(unit, fontsize=10)
    axes.legend(frameon=False, fontsize=10, title="last validation loss", title_fontsize=10)
    return to_svg(figure, f"Loss against {against} of the runs {', '.join(name for name, _ in runs)}.")
