"""What all figures share: colours and markers, plain axes, labels at the ends of lines, inline SVG for pages.

Lines differ in dashes or markers as well as in colour (Okabe and Ito's), so that colour is never the only sign.
"""

from __future__ import annotations

import html
import io
import re

MODEL, UNTRAINED, PIXELS, GREY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#5f6670", "#9a4f80"
# Colours and markers of models in one figure.
SERIES = [("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
          ("#000000", "X")]  # fmt: skip
RING = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#111", "markeredgewidth": 1.6}


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


def label_levels(axes, labels: list[tuple[float, str, str]], size: float = 10) -> None:
    """Write (height, text, colour) to the right of the axes, close to the heights and not over each other.

    The limits of the y-axis must be final.
    """
    low, high = axes.get_ylim()
    points = axes.figure.get_figheight() * 72 / axes.get_subplotspec().get_gridspec().nrows * 0.7  # about the axes'
    heights = spread([value for value, _, _ in labels], (high - low) * 1.25 * size / points)
    for place, (_, text, colour) in zip(heights, labels, strict=True):
        axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), color=colour, fontsize=size, va="center")
