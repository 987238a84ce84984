"""Probe accuracy per layer, drawn: one result (report, `toto probe`), or several in one figure (`--compare`).

The paper's figures 9 and 18 show the same curves: accuracy of a probe over the depth of a frozen model.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.plots import GREY, MODEL, PIXELS, PURPLE, UNTRAINED, new_figure, to_svg
from evaluation.reading import AGAINST

# The colours of Okabe and Ito; markers and dashes differ too, so that colour is never the only sign.
STYLES = {
    "model": {"color": MODEL, "linewidth": 2.2, "marker": "o", "markersize": 3.5},
    "untrained": {"color": UNTRAINED, "linewidth": 1.8, "marker": "^", "markersize": 5},
    "pixels": {"color": PIXELS, "linewidth": 1.8, "linestyle": (0, (6, 2, 1, 2))},
    "random_filters": {"color": PURPLE, "linewidth": 1.8, "linestyle": (0, (5, 1))},
    "histogram": {"color": "#B07A00", "linewidth": 1.8, "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "hog": {"color": "#2b7fb0", "linewidth": 1.8, "linestyle": (0, (1, 1))},
    "chance": {"color": GREY, "linewidth": 1.4, "linestyle": (0, (1, 2))},
}
HEAD_STYLES = {"linear": "-", "attention": (0, (4, 2)), "cross_attention_mlp": (0, (1.5, 1.2))}
SERIES = [("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
          ("#000000", "X")]  # fmt: skip
RING = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#111", "markeredgewidth": 1.6}


def layers_svg(name: str, label: str, task: dict) -> str:
    """`draw_task` as an inline picture of the report, with its numbers in words. task: every row with `ci95`."""
    figure, axes = new_figure(4.2, 3.2)
    draw_task(axes, label, task)
    best = task["best"]
    others = ", ".join(f"{AGAINST.get(w, w)} {100 * row['accuracy']:.1f} %" for w, row in task["baselines"].items())
    alt = (
        f"Probe accuracy of {name} for {label}, per layer. Chosen on validation: layer {best['layer']}, {best['head']} "
        f"head, {100 * best['accuracy']:.1f} % on test. Baselines: {others or 'none'}."
    )
    return to_svg(figure, alt)


def write_layer_plot(results: dict, path: str | Path) -> None:
    """The layer curves of one result of `toto probe` as a picture file, a panel for each label, with a legend."""
    tasks = results["tasks"]
    figure, axes = new_figure(4.6 * len(tasks), 4.2, (1, len(tasks)))
    for panel, (label, task) in zip(axes[0], tasks.items(), strict=True):
        draw_task(panel, label, task)
    rows = [row for task in tasks.values() for row in task["layers"]]
    baselines = dict.fromkeys(who for task in tasks.values() for who in task["baselines"])
    entries = [_sample(f"{Path(results['model']).name or results['model']}", **STYLES["model"])]
    entries += [_sample(AGAINST.get(who, who), **STYLES.get(who, {"color": GREY})) for who in (*baselines, "chance")]
    heads = list(dict.fromkeys(row["head"] for row in rows))
    entries += [_sample(f"{head} head", color=GREY, linestyle=HEAD_STYLES.get(head, "-")) for head in heads]
    _legend(figure, [*entries, _sample("chosen on validation", linestyle="none", **RING)])
    figure.savefig(path, dpi=130)


def draw_task(axes, label: str, task: dict) -> None:
    """Test accuracy per layer with 95 % bands: the model and its untrained twin; other baselines and chance are level.

    A ring marks the layer and head chosen on validation.
    """
    baselines, best = task["baselines"], task["best"]
    for who, rows in {"model": task["layers"], "untrained": baselines.get("untrained", {}).get("layers", [])}.items():
        for head in dict.fromkeys(row["head"] for row in rows):
            _curve(axes, [row for row in rows if row["head"] == head], 1, STYLES[who], HEAD_STYLES.get(head, "-"))
    for who, row in baselines.items():
        if not row.get("layers"):
            style = STYLES.get(who, {"color": GREY})
            axes.axhline(100 * row["accuracy"], **style)
            axes.axhspan(*_bounds(row), color=style["color"], alpha=0.1, lw=0)
    if "chance" in task:
        axes.axhline(100 * task["chance"], **STYLES["chance"])
    axes.plot(best["layer"], 100 * best["accuracy"], **RING)
    _label_axes(axes, label, "layer (0 = embeddings)")
    axes.xaxis.get_major_locator().set_params(integer=True)


def comparison_figure(names: list[str], depths: list[int | None], tasks: list[dict[str, dict]]):
    """Several models in one figure: for each label and head a panel over relative depth and one over layer numbers.

    Args:
        names: of the models, at most seven, different ones.
        depths: number of the deepest layer of each; a model where it is None is not in the panels of relative depth.
        tasks: of each, {label: task}, the same labels everywhere.
    """
    if len(names) > len(SERIES):
        raise ValueError(f"a figure shows at most {len(SERIES)} results, not {len(names)}: compare fewer at a time.")
    heads = list(dict.fromkeys(row["head"] for each in tasks for task in each.values() for row in task["layers"]))
    panels = [(label, head) for label in tasks[0] for head in heads]
    figure, axes = new_figure(10.5, 3.4 * len(panels) + 0.8, (len(panels), 2))
    for (label, head), (relative, absolute) in zip(panels, axes, strict=True):
        for k, (depth, its_tasks) in enumerate(zip(depths, tasks, strict=True)):
            colour, marker = SERIES[k]
            style = {"color": colour, "marker": marker, "linewidth": 2, "markersize": 5}
            rows, best = [row for row in its_tasks[label]["layers"] if row["head"] == head], its_tasks[label]["best"]
            for panel, unit in ((relative, depth), (absolute, 1)):
                if rows and unit is not None:
                    _curve(panel, rows, unit, style)
                    if best["head"] == head:
                        panel.plot(best["layer"] / unit, 100 * best["accuracy"], **RING)
        for panel in (relative, absolute):
            _draw_floors(panel, [each[label] for each in tasks])
            title = f"{label}, {head.replace('_', ' ')} head"
            _label_axes(panel, title, "relative depth" if panel is relative else "layer (0 = embeddings)")
        relative.set_xlim(-0.03, 1.03)
        absolute.xaxis.get_major_locator().set_params(integer=True)
        absolute.sharey(relative)
    entries = [_sample(name, color=SERIES[k][0], marker=SERIES[k][1]) for k, name in enumerate(names)]
    found = dict.fromkeys(who for each in tasks for task in each.values() for who in task["baselines"])
    entries += [
        _sample(f"{AGAINST[who]}, best layer" if who == "untrained" else AGAINST.get(who, who), color=GREY,
                linestyle=_dashes(who))
        for who in (*found, "chance")
    ]  # fmt: skip
    _legend(figure, [*entries, _sample("chosen on validation", linestyle="none", **RING)])
    return figure


def _draw_floors(axes, tasks: list[dict]) -> None:
    """Baselines and chance as level lines: grey where there is one height, else in the colour of the model."""
    for who in dict.fromkeys(who for task in tasks for who in task["baselines"]):
        heights = {k: task["baselines"][who]["accuracy"] for k, task in enumerate(tasks) if who in task["baselines"]}
        shared = len(set(heights.values())) == 1
        for k, height in list(heights.items())[: 1 if shared else None]:
            axes.axhline(100 * height, color=GREY if shared else SERIES[k][0], lw=1.3, linestyle=_dashes(who))
    for chance in {task["chance"] for task in tasks if "chance" in task}:
        axes.axhline(100 * chance, **STYLES["chance"])


def _dashes(who: str):
    return STYLES.get(who, {}).get("linestyle", (0, (4, 3)))


def _curve(axes, rows: list[dict], unit: int, style: dict, linestyle="-") -> None:
    rows = sorted(rows, key=lambda row: row["layer"])
    places = [row["layer"] / unit for row in rows]
    low, high = zip(*map(_bounds, rows), strict=True)
    axes.fill_between(places, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.plot(places, [100 * row["accuracy"] for row in rows], **style, linestyle=linestyle)


def _bounds(row: dict) -> tuple[float, float]:
    return 100 * row["ci95"][0], 100 * row["ci95"][1]


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
