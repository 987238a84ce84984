"""Figures: losses of runs, probe accuracy per layer; as inline SVG for pages, or as picture files.

Lines differ in dashes or markers as well as in colour (Okabe and Ito's), so that colour is never the only sign.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

from evaluation.report.reading import AGAINST, NATS
from evaluation.results import ProbeResult, Row, TaskResult

MODEL, UNTRAINED, PIXELS, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#5f6670", "#9a4f80"
PREDICTORS = {
    "unigram": ("unigram", GREY, (0, (1, 2))),
    "bigram": ("bigram", PURPLE, (0, (4, 2))),
    "previous_frame": ("previous frame", PIXELS, (0, (6, 2, 1, 2))),
}
# Curves and level lines of one probe: the model, its baselines, chance.
STYLES = {
    "model": {"color": MODEL, "linewidth": 2.2, "marker": "o", "markersize": 3.5},
    "untrained": {"color": UNTRAINED, "linewidth": 1.8, "marker": "^", "markersize": 5},
    "pixels": {"color": PIXELS, "linewidth": 1.8, "linestyle": (0, (6, 2, 1, 2))},
    "random_filters": {"color": PURPLE, "linewidth": 1.8, "linestyle": (0, (5, 1))},
    "histogram": {"color": "#B07A00", "linewidth": 1.8, "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "hog": {"color": "#2b7fb0", "linewidth": 1.8, "linestyle": (0, (1, 1))},
    "chance": {"color": GREY, "linewidth": 1.4, "linestyle": (0, (1, 2))},
}
# Dashes of heads, where one figure has several.
HEAD_STYLES = {"linear": "-", "attention": (0, (4, 2)), "cross_attention_mlp": (0, (1.5, 1.2))}
# Colours and markers of models in one figure.
SERIES = [("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
          ("#000000", "X")]  # fmt: skip
RING = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#111", "markeredgewidth": 1.6}
# Toto-large on Kinetics-400 validation, mean of each frame (paper Fig. 10, read off the figure).
PAPER_FRAMES = (6.59, 3.48, 3.19, 3.07, 3.01, 2.97, 2.95, 2.93, 2.91, 2.90, 2.89, 2.88, 2.88, 2.87, 2.87, 2.87)
# Colours and dashes of runs in one figure, in an order whose neighbours differ.
RUN_STYLES = [
    (c, d) for d in ("-", (0, (5, 2)), (0, (1, 1.5))) for c in (MODEL, "#D55E00", "#009E73", "#9a4f80", "#111")
]
# Most frames whose maps are shown.
SHOWN = 8


def new_figure(width: float, height: float, grid: tuple[int, int] | None = None):
    """A figure and its axes in the plain style of our pages; no global state of matplotlib is changed.

    width, height: inches (72 SVG units each). grid: rows and columns of panels; the axes are then an array of that
    shape.
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
    """Give axes light spines on two sides and a horizontal grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa1a9")
    axes.tick_params(color="#9aa1a9", labelcolor="#30363d", labelsize=10)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def short_ticks(axis, spans_decades: bool = True) -> None:
    """Label a logarithmic axis (`axes.xaxis`) as 10k or 3M; if it spans no decades, also between powers of ten."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter() if spans_decades else EngFormatter(sep=""))
    if not spans_decades:
        axis.set_minor_locator(LogLocator(subs=(2, 4, 6)))


def to_svg(figure, alt: str) -> str:
    """The figure as an <svg> element that fills its container; screen readers read `alt`. Ids are unique per `alt`."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text (small, searchable); ids are hashed with the alt text, which differs between figures.
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
    """Positions of labels close to `values`: in the same order, at least `gap` apart, with about the same centre."""
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

    rows: of metrics.jsonl. predictors: of `predictors.run_losses`, or None. unit: of the losses.
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
        ValueError: the rows of a run do not have `against`.
    """
    figure, axes = new_figure(5.6, 3.8)
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
    axes.set_xlabel({"tokens": "tokens", "flops": "training FLOPs"}[against], fontsize=10)
    axes.set_ylabel(unit, fontsize=10)
    axes.legend(frameon=False, fontsize=9, title="last validation loss", title_fontsize=9)
    return to_svg(figure, f"Loss against {against} of the runs {', '.join(name for name, _ in runs)}.")


def layers_svg(name: str, label: str, task: TaskResult) -> str:
    """`draw_task` as inline SVG, with its numbers in words for screen readers. task: every row has `ci95`."""
    figure, axes = new_figure(4.2, 3.2)
    draw_task(axes, label, task)
    best = task.best
    others = ", ".join(f"{AGAINST.get(w, w)} {100 * row.accuracy:.1f} %" for w, row in task.baselines.items())
    alt = (
        f"Probe accuracy of {name} for {label}, per layer. Chosen on validation: layer {best.layer}, {best.head} "
        f"head, {100 * best.accuracy:.1f} % on test. Baselines: {others or 'none'}."
    )
    return to_svg(figure, alt)


def write_layer_plot(result: ProbeResult, path: str | Path) -> None:
    """Write the layer curves of one result of `toto probe` as a picture file: a panel per label, and a legend."""
    tasks = result.tasks
    figure, axes = new_figure(4.6 * len(tasks), 4.2, (1, len(tasks)))
    for panel, (label, task) in zip(axes[0], tasks.items(), strict=True):
        draw_task(panel, label, task)
    rows = [row for task in tasks.values() for row in task.layers]
    baselines = dict.fromkeys(who for task in tasks.values() for who in task.baselines)
    entries = [_sample(f"{Path(result.model).name or result.model}", **STYLES["model"])]
    entries += [_sample(AGAINST.get(who, who), **STYLES.get(who, {"color": GREY})) for who in (*baselines, "chance")]
    heads = list(dict.fromkeys(row.head for row in rows))
    entries += [_sample(f"{head} head", color=GREY, linestyle=HEAD_STYLES.get(head, "-")) for head in heads]
    _legend(figure, [*entries, _sample("chosen on validation", linestyle="none", **RING)])
    figure.savefig(path, dpi=130)


def draw_task(axes, label: str, task: TaskResult) -> None:
    """Draw test accuracy per layer with 95 % bands, as the paper's figures 9 and 18 do for the model.

    Curves: the model and its untrained twin. Level lines: other baselines, and chance.

    A ring marks the layer and head chosen on validation.
    """
    baselines, best = task.baselines, task.best
    for who, rows in {"model": task.layers, "untrained": task.untrained_layers}.items():
        for head in dict.fromkeys(row.head for row in rows):
            _curve(axes, [row for row in rows if row.head == head], 1, STYLES[who], HEAD_STYLES.get(head, "-"))
    for who, row in baselines.items():
        if not row.layers:
            style = STYLES.get(who, {"color": GREY})
            axes.axhline(100 * row.accuracy, **style)
            axes.axhspan(*_bounds(row), color=style["color"], alpha=0.1, lw=0)
    if task.chance is not None:
        axes.axhline(100 * task.chance, **STYLES["chance"])
    axes.plot(best.layer, 100 * best.accuracy, **RING)
    _label_axes(axes, label, "layer (0 = embeddings)")
    axes.xaxis.get_major_locator().set_params(integer=True)


def comparison_figure(names: list[str], depths: list[int | None], tasks: list[dict[str, TaskResult]]):
    """A figure of several models: for each label and head, a panel over relative depth and one over layer numbers.

    Args:
        names: of the models, at most seven; all different.
        depths: number of the deepest layer of each; None leaves a model out of the panels of relative depth.
        tasks: of each, {label: task}, with the same labels.
    Raises:
        ValueError: more than seven models.
    """
    if len(names) > len(SERIES):
        raise ValueError(
            f"{len(names)} results are too many for one figure; compare at most {len(SERIES)} results at a time."
        )
    heads = list(dict.fromkeys(row.head for each in tasks for task in each.values() for row in task.layers))
    panels = [(label, head) for label in tasks[0] for head in heads]
    figure, axes = new_figure(10.5, 3.4 * len(panels) + 0.8, (len(panels), 2))
    for (label, head), (relative, absolute) in zip(panels, axes, strict=True):
        for k, (depth, its_tasks) in enumerate(zip(depths, tasks, strict=True)):
            colour, marker = SERIES[k]
            style = {"color": colour, "marker": marker, "linewidth": 2, "markersize": 5}
            rows, best = [row for row in its_tasks[label].layers if row.head == head], its_tasks[label].best
            for panel, unit in ((relative, depth), (absolute, 1)):
                if rows and unit is not None:
                    _curve(panel, rows, unit, style)
                    if best.head == head:
                        panel.plot(best.layer / unit, 100 * best.accuracy, **RING)
        for panel in (relative, absolute):
            _draw_floors(panel, [each[label] for each in tasks])
            title = f"{label}, {head.replace('_', ' ')} head"
            _label_axes(panel, title, "relative depth" if panel is relative else "layer (0 = embeddings)")
        relative.set_xlim(-0.03, 1.03)
        absolute.xaxis.get_major_locator().set_params(integer=True)
        absolute.sharey(relative)
    entries = [_sample(name, color=SERIES[k][0], marker=SERIES[k][1]) for k, name in enumerate(names)]
    found = dict.fromkeys(who for each in tasks for task in each.values() for who in task.baselines)
    entries += [
        _sample(f"{AGAINST[who]}, best layer" if who == "untrained" else AGAINST.get(who, who), color=GREY,
                linestyle=_dashes(who))
        for who in (*found, "chance")
    ]  # fmt: skip
    _legend(figure, [*entries, _sample("chosen on validation", linestyle="none", **RING)])
    return figure


def _draw_floors(axes, tasks: list[TaskResult]) -> None:
    """Draw baselines and chance as level lines: grey where all models share a height, else in the model's colour."""
    for who in dict.fromkeys(who for task in tasks for who in task.baselines):
        heights = {k: task.baselines[who].accuracy for k, task in enumerate(tasks) if who in task.baselines}
        shared = len(set(heights.values())) == 1
        for k, height in list(heights.items())[: 1 if shared else None]:
            axes.axhline(100 * height, color=GREY if shared else SERIES[k][0], lw=1.3, linestyle=_dashes(who))
    for chance in {task.chance for task in tasks if task.chance is not None}:
        axes.axhline(100 * chance, **STYLES["chance"])


def _dashes(who: str):
    return STYLES.get(who, {}).get("linestyle", (0, (4, 3)))


def _curve(axes, rows: list[Row], unit: int, style: dict, linestyle="-") -> None:
    rows = sorted(rows, key=lambda row: row.layer)
    places = [row.layer / unit for row in rows]
    low, high = zip(*map(_bounds, rows), strict=True)
    axes.fill_between(places, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.plot(places, [100 * row.accuracy for row in rows], **style, linestyle=linestyle)


def _bounds(row: Row) -> tuple[float, float]:
    return 100 * row.ci95[0], 100 * row.ci95[1]


def _label_axes(axes, title: str, below: str) -> None:
    axes.set_ylim(bottom=0)
    axes.margins(x=0.04)
    axes.set_title(title, fontsize=12, loc="left", fontweight="bold", color="#1f2328")
    axes.set_xlabel(below, fontsize=10)
    axes.set_ylabel("test accuracy, %", fontsize=10)


def _sample(label: str, **style):
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def _legend(figure, entries: list) -> None:
    columns = min(4, int(figure.get_figwidth() / 2.2), len(entries))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
