"""Figures of probes: accuracy per layer, of one model with its floors or of several models."""

from __future__ import annotations

from pathlib import Path

from evaluation.report.figures import (
    GREY,
    MODEL,
    PIXELS,
    PURPLE,
    RING,
    SERIES,
    UNTRAINED,
    label_levels,
    new_figure,
    to_svg,
)
from evaluation.report.reading import AGAINST
from evaluation.results import ProbeResult, Row, TaskResult

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
LAYER, DEPTH = "layer (0 = embeddings)", "relative depth"
# Dashes of heads, where one figure has several.
HEAD_STYLES = {"linear": "-", "attention": (0, (4, 2)), "cross_attention_mlp": (0, (1.5, 1.2))}


def has_curve(task: TaskResult) -> bool:
    """Were several layers probed? One layer is a point on an empty axis; the tables have its numbers."""
    return len({row.layer for row in task.layers}) > 1


def layers_svg(name: str, label: str, task: TaskResult) -> str:
    """`draw_task` as inline SVG, with its numbers in words for screen readers. task: every row has `ci95`."""
    figure, axes = new_figure(4.8, 3.2)
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
    figure, axes = new_figure(5.2 * len(tasks), 4.2, (1, len(tasks)))
    for panel, (label, task) in zip(axes[0], tasks.items(), strict=True):
        draw_task(panel, label, task)
    heads = list(dict.fromkeys(row.head for task in tasks.values() for row in task.layers))
    entries = [_sample(f"{Path(result.model).name or result.model}", **STYLES["model"])]
    entries += [_sample(f"{head} head", color=GREY, linestyle=HEAD_STYLES.get(head, "-")) for head in heads]
    _legend(figure, [*entries, _sample("chosen on validation", linestyle="none", **RING)])
    figure.savefig(path, dpi=130)


def draw_task(axes, label: str, task: TaskResult) -> None:
    """Draw test accuracy per layer with 95 % bands, as the paper's figures 9 and 18 do for the model.

    Curves: the model and its untrained twin. Level lines: other baselines, and chance. Each has its name at its end.

    A ring marks the layer and head chosen on validation.
    """
    baselines, best = task.baselines, task.best
    ends = []
    for who, rows in {"model": task.layers, "untrained": task.untrained_layers}.items():
        for head in dict.fromkeys(row.head for row in rows):
            _curve(axes, [row for row in rows if row.head == head], 1, STYLES[who], HEAD_STYLES.get(head, "-"))
        if rows:
            last = max((row for row in rows if row.head == best.head or who != "model"), key=lambda row: row.layer)
            ends.append((100 * last.accuracy, "model" if who == "model" else _floor(who), STYLES[who]["color"]))
    for who, row in baselines.items():
        if not row.layers:
            style = STYLES.get(who, {"color": GREY})
            axes.axhline(100 * row.accuracy, **style)
            axes.axhspan(*_bounds(row), color=style["color"], alpha=0.1, lw=0)
            ends.append((100 * row.accuracy, f"{_floor(who)} {100 * row.accuracy:.1f}", style["color"]))
    if task.chance is not None:
        axes.axhline(100 * task.chance, **STYLES["chance"])
        ends.append((100 * task.chance, f"chance {100 * task.chance:.1f}", STYLES["chance"]["color"]))
    axes.plot(best.layer, 100 * best.accuracy, **RING)
    _label_axes(axes, label, LAYER)
    axes.xaxis.get_major_locator().set_params(integer=True)
    label_levels(axes, ends)


def axes_of(depths: list[int | None]) -> list[str]:
    """What the figures of a comparison have below: layer numbers, and relative depth where known depths differ."""
    return [DEPTH, LAYER] if len(set(depths) - {None}) > 1 else [LAYER]


def heads_of(tasks: list[dict[str, TaskResult]]) -> list[str]:
    return list(dict.fromkeys(row.head for each in tasks for task in each.values() for row in task.layers))


def check_count(names: list[str]) -> None:
    """Raise ValueError for more models than there are colours."""
    if len(names) > len(SERIES):
        raise ValueError(
            f"{len(names)} results are too many for one figure; compare at most {len(SERIES)} results at a time."
        )


def comparison_figure(names: list[str], depths: list[int | None], tasks: list[dict[str, TaskResult]]):
    """A figure of several models: a panel for each label and head, and for each of `axes_of`.

    Args:
        names: of the models, at most seven; all different.
        depths: number of the deepest layer of each; None leaves a model out of the panels of relative depth.
        tasks: of each, {label: task}, with the same labels.
    Raises:
        ValueError: more than seven models.
    """
    check_count(names)
    panels, below = [(label, head) for label in tasks[0] for head in heads_of(tasks)], axes_of(depths)
    figure, axes = new_figure(6.3 * len(below), 3.4 * len(panels) + 0.8, (len(panels), len(below)))
    for (label, head), line in zip(panels, axes, strict=True):
        for panel, unit in zip(line, below, strict=True):
            draw_comparison(panel, label, head, unit, names, depths, tasks)
    entries = [_sample(name, color=SERIES[k][0], marker=SERIES[k][1]) for k, name in enumerate(names)]
    _legend(figure, [*entries, _sample("chosen on validation", linestyle="none", **RING)])
    return figure


def comparison_svg(
    label: str, head: str, below: str, names: list[str], depths: list[int | None], tasks: list[dict[str, TaskResult]]
) -> str:
    """One panel of `comparison_figure` as inline SVG, so that the panels of a page wrap on a narrow screen."""
    figure, axes = new_figure(5.4, 3.4)
    draw_comparison(axes, label, head, below, names, depths, tasks)
    where = "layer number" if below == LAYER else below
    return to_svg(figure, f"Test accuracy for {label}, {head} head, against {where}, of {', '.join(names)}.")


def draw_comparison(
    axes,
    label: str,
    head: str,
    below: str,
    names: list[str],
    depths: list[int | None],
    tasks: list[dict[str, TaskResult]],
) -> None:
    """Draw a curve per model, with a ring where `head` was chosen on validation, and the floors by name."""
    for k, (depth, each) in enumerate(zip(depths, tasks, strict=True)):
        unit = 1 if below == LAYER else depth
        rows, best = [row for row in each[label].layers if row.head == head], each[label].best
        if rows and unit is not None:
            _curve(axes, rows, unit, {"color": SERIES[k][0], "marker": SERIES[k][1], "linewidth": 2, "markersize": 5})
            if best.head == head:
                axes.plot(best.layer / unit, 100 * best.accuracy, **RING)
    floors = _draw_floors(axes, names, [each[label] for each in tasks])
    _label_axes(axes, f"{label}, {head.replace('_', ' ')} head", below)
    if below == LAYER:
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.set_xlim(-0.03, 1.03)
    label_levels(axes, floors, 9.5)


def _draw_floors(axes, names: list[str], tasks: list[TaskResult]) -> list[tuple[float, str, str]]:
    """Draw baselines and chance as level lines: grey where all models share a height, else in the model's colour.

    Returns:
        Their labels, for `label_levels`.
    """
    labels = []
    for who in dict.fromkeys(who for task in tasks for who in task.baselines):
        heights = {k: task.baselines[who].accuracy for k, task in enumerate(tasks) if who in task.baselines}
        shared = len(set(heights.values())) == 1
        for k, height in list(heights.items())[: 1 if shared else None]:
            colour = GREY if shared else SERIES[k][0]
            axes.axhline(100 * height, color=colour, lw=1.3, linestyle=_dashes(who))
            of = "" if shared and len(heights) == len(tasks) else f", {names[k]}"
            labels.append((100 * height, f"{_floor(who)} {100 * height:.1f}{of}", colour))
    for chance in {task.chance for task in tasks if task.chance is not None}:
        axes.axhline(100 * chance, **STYLES["chance"])
        labels.append((100 * chance, f"chance {100 * chance:.1f}", STYLES["chance"]["color"]))
    return labels


def _floor(who: str) -> str:
    return AGAINST.get(who, who).removeprefix("the ")


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
