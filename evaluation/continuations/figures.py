"""Figures of continuations: measures against horizon and against training tokens, and a sheet of clips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.continuations.tables import NAMES, curve_labels, curve_values, name_of
from evaluation.pictures import DRAWN, FRAME, GAP, INK, PAPER, enlarge
from evaluation.report.figures import GREY, MODEL, SERIES, new_figure, short_ticks
from evaluation.results import CheckpointsResult, ContinuationResult, ContinuationScores, Curve, FrameContinuationResult

if TYPE_CHECKING:
    from evaluation.continuations.measures import Drawn

STYLES = {
    "greedy": {"color": MODEL, "linewidth": 2.4, "marker": "o", "markersize": 4},
    "sampled": {"color": "#56B4E9", "linewidth": 1.8, "marker": "s", "markersize": 4},
    "best": {"color": "#009E73", "linewidth": 1.8, "marker": "D", "markersize": 4},
    "copy": {"color": GREY, "linewidth": 1.6, "linestyle": (0, (1, 1.5))},
    "constant_velocity": {"color": "#D55E00", "linewidth": 1.8, "linestyle": (0, (6, 2))},
    "previous_frame": {"color": "#9a4f80", "linewidth": 1.8, "linestyle": (0, (6, 2, 1, 2))},
    "untrained": {"color": "#B07A00", "linewidth": 1.8, "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "ceiling": {"color": "#111111", "linewidth": 1.4, "linestyle": (0, (8, 3))},
}
PANELS = {
    "iou": ("Mask IoU of moving objects", 1),
    "identity": ("Identity kept, % of objects", 100),
    "codes": ("Codes right, % of tokens", 100),
    "changed_codes": ("Codes right where they changed, %", 100),
    "psnr": ("PSNR, dB", 1),
    "ssim": ("SSIM", 1),
}
NATS_STYLES = {
    "teacher_forced": ("teacher-forced", {"color": "#111111", "linewidth": 1.8, "linestyle": (0, (8, 3))}),
    "greedy": ("after greedy frames", {"color": MODEL, "linewidth": 2.4, "marker": "o", "markersize": 4}),
    "sampled": ("after sampled frames", {"color": "#56B4E9", "linewidth": 1.8, "marker": "s", "markersize": 4}),
}
EVENTS = {"bounce": "bounce", "returned": "return", "period": "period"}
EQUAL = 100  # dB: PSNR of frames with nearly no error, which would flatten all other lines


def draw_horizons(result: ContinuationResult, file: Path) -> None:
    """Write the measures against the horizon, with 95 % bands, and the shares of events right: a panel each."""
    is_motion = not isinstance(result, FrameContinuationResult)
    figure, axes = new_figure(16.5, 7.4, (2, 4)) if is_motion else new_figure(12.5, 7.4, (2, 3))
    for panel, name in zip(axes.flat, panels_of(result), strict=False):
        curves = [(STYLES[who], getattr(each, name)) for who, each in result.scores.items()]
        draw_curves(panel, curves, *PANELS[name])
    if result.nats is not None:
        draw_nats(axes.flat[-2], result.nats)
    if is_motion:
        _draw_events(axes.flat[-1], result)
    for panel in axes.flat:
        if not panel.has_data():
            panel.set_axis_off()
    _legend(figure, result.scores, result.sampling["num_samples"])
    figure.savefig(file, dpi=120)


def draw_comparison(results: dict[str, ContinuationResult], way: str, file: Path) -> None:
    """Write the measures of several models against the drawn frame, with 95 % bands: a panel each.

    results: label -> result, all of the same clips. way: of continuing. Codes and losses are left out where tokenizers
    differ. Copying the last frame is the floor of all; every model has the ceiling of its tokenizer, in its colour.
    """
    from matplotlib.lines import Line2D

    labels, same = list(results), len({result.tokenizer for result in results.values()}) == 1
    shared = set.intersection(*({*panels_of(each)} for each in results.values()))
    panels = [name for name in PANELS if name in shared and (same or "codes" not in name)]
    with_nats = same and all(each.nats is not None for each in results.values())
    count = len(panels) + with_nats
    columns = min(count, 3 if count < 7 else 4)
    rows = -(-count // columns)
    figure, axes = new_figure(4.2 * columns, 0.8 + 3.5 * rows, (rows, columns))
    styles = {
        label: {"color": colour, "marker": marker, "linewidth": 2, "markersize": 5}
        for label, (colour, marker) in zip(labels, SERIES, strict=False)
    }
    first = results[labels[0]]
    for panel, name in zip(axes.flat, panels, strict=False):
        curves = [(STYLES["copy"], getattr(first.scores["copy"], name))]
        for label in labels if not same else labels[:1]:
            ceiling = STYLES["ceiling"] if same else STYLES["ceiling"] | {"color": styles[label]["color"]}
            curves.append((ceiling, getattr(results[label].scores["ceiling"], name)))
        curves += [(styles[label], getattr(each.scores[way], name)) for label, each in results.items()]
        draw_curves(panel, curves, *PANELS[name])
    if with_nats:
        kind = "greedy" if way == "greedy" else "sampled"
        curves = [(styles[label], each.nats[kind]) for label, each in results.items()]
        draw_curves(axes.flat[count - 1], curves, f"Loss after {kind} frames, nats per token")
        axes.flat[count - 1].set_ylim(bottom=0)
    for panel in axes.flat[count:]:
        panel.set_axis_off()
    entries = [Line2D([], [], label=label, **style) for label, style in styles.items()]
    entries += [Line2D([], [], label=NAMES[name], **STYLES[name]) for name in ("copy", "ceiling")]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False, fontsize=10, handlelength=3.2)
    figure.savefig(file, dpi=120)


def panels_of(result: ContinuationResult) -> list[str]:
    """Those of PANELS that the result has."""
    scores = next(iter(result.scores.values()))
    return [name for name in PANELS if getattr(scores, name, None) is not None]


def draw_curves(panel, curves: list[tuple[dict, Curve | None]], title: str, unit: int = 1) -> None:
    """Means against the drawn frame, with 95 % bands. curves: (style of the line, values); those left out are None."""
    frames = np.arange(1, 1)
    for style, curve in curves:
        if curve is None:
            continue
        means = np.array(curve.mean, float) * unit  # None becomes nan
        if "PSNR" in title and np.nanmax(means) >= EQUAL:
            continue
        frames = np.arange(1, len(means) + 1)
        panel.plot(frames, means, **style)
        bounds = np.array([each or (np.nan, np.nan) for each in curve.ci95]) * unit
        panel.fill_between(frames, *bounds.T, color=style["color"], alpha=0.12, linewidth=0)
    _label(panel, title, "drawn frame")
    panel.set_xticks(frames if len(frames) <= 16 else frames[:: len(frames) // 8])
    if "%" in title or "IoU" in title:
        panel.set_ylim(-0.02 * unit, 1.02 * unit)


def draw_nats(panel, nats: dict[str, Curve]) -> None:
    """Losses of the true frames, after true and after drawn ones."""
    draw_curves(panel, [(NATS_STYLES[name][1], curve) for name, curve in nats.items()], "Loss, nats per token")
    panel.set_ylim(bottom=0)
    panel.legend(
        [panel.lines[k] for k in range(len(nats))], [NATS_STYLES[n][0] for n in nats], frameon=False, fontsize=9
    )


def _draw_events(axes, result: ContinuationResult) -> None:
    """Bars of the shares of bounces, returns and periods right, side by side for every way of continuing."""
    width = 0.8 / len(result.scores)
    for k, (who, scores) in enumerate(result.scores.items()):
        for place, name in enumerate(EVENTS):
            share = getattr(scores, name)
            if share.mean is None:
                continue
            at = place - 0.4 + (k + 0.5) * width
            axes.bar(at, 100 * share.mean, 0.86 * width, color=STYLES[who]["color"])
            if share.ci95 is not None:
                axes.plot([at, at], [100 * bound for bound in share.ci95], color="#30363d", linewidth=1)
    one = next(iter(result.scores.values()))
    labels = [f"{label}\n{getattr(one, name).cases} cases" for name, label in EVENTS.items()]
    if (control := result.permanence) is not None:
        labels.append("drawn there:\nshown, deleted")
        bars = ((2.85, control.with_object, {}), (3.15, control.deleted, {"fill": False, "hatch": "////"}))
        for at, share, style in bars:
            axes.bar(at, 100 * share.mean, 0.26, color=MODEL, edgecolor=MODEL, **style)
            if share.ci95 is not None:
                axes.plot([at, at], [100 * bound for bound in share.ci95], color="#30363d", linewidth=1)
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(0, 102)
    _label(axes, "Events right, % of cases", "")


def draw_checkpoints(result: CheckpointsResult, file: Path) -> None:
    """Write each measure against the training tokens, on a logarithmic axis, with the floors as levels."""
    labels = curve_labels(result.num_frames)
    figure, axes = new_figure(12.5, 7.2, (2, 3))
    points = [point for point in result.points if point.tokens > 0]
    for panel, (name, label) in zip(axes.flat, labels.items(), strict=True):
        for who, scores in result.levels.items():
            value = curve_values(scores)[name]
            if value is not None:
                panel.axhline(100 * value, **STYLES[who])
        values = np.array([curve_values(point.scores)[name] for point in points], float)
        tokens = [point.tokens for point in points]
        bounds = np.array([_bounds(point.scores, name) or (np.nan, np.nan) for point in points]).reshape(-1, 2)
        panel.fill_between(tokens, *(100 * bounds.T), color=MODEL, alpha=0.13, linewidth=0)
        panel.plot(tokens, 100 * values, **STYLES["greedy"])
        panel.set_xscale("log")
        short_ticks(panel.xaxis, spans_decades=tokens[-1] > 30 * tokens[0])
        panel.set_ylim(-2, 102)
        _label(panel, f"{label[0].upper()}{label[1:]}, %", "training tokens")
    _legend(figure, {"greedy": None} | result.levels)
    figure.savefig(file, dpi=120)


def _bounds(scores: ContinuationScores, name: str) -> list[float] | None:
    """The 95 % interval of a measure of `curve_labels`."""
    measure, _, which = name.partition("_")
    found = getattr(scores, measure).ci95
    return found if not which or found is None else found[0 if which == "first" else -1]


def _label(axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold", color="#1f2328")
    axes.set_xlabel(below, fontsize=10)


def _legend(figure, names, num_samples: int = 1) -> None:
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], label=name_of(name, num_samples), **STYLES[name]) for name in names]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False, fontsize=10, handlelength=3.2)


def sheet(video: np.ndarray, prompt: int, prompts: Drawn, greedy: Drawn, count: int) -> Image.Image:
    """The first clips, each as a row of true frames above one of the prompt and the greedy frames.

    video: true frames, uint8 (C, T, R, R, 3), of which the first `prompt` are given. prompts: these, as tokens show
    them. A thin line separates prompt and drawn frames.
    """
    count = min(count, len(video))
    true = enlarge(video[:count])
    drawn = enlarge(np.concatenate([prompts.frames[:count], greedy.frames[:count]], axis=1))
    total, side = true.shape[1], true.shape[2]
    left, top, step = 70, 40, side + GAP
    pair = 2 * step + 2 * GAP
    line = left + prompt * step + GAP  # the drawn frames begin after a gap of three
    picture = Image.new("RGB", (left + total * step + 3 * GAP, top + count * pair), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=20)
    draw.text((left, 8), f"prompt: {prompt} true frames", fill=INK, font=font)
    draw.text(
        (line + 2 * GAP, 8), f"{total - prompt} drawn frames, each with the most likely code", fill=DRAWN, font=font
    )
    for clip in range(count):
        for row, (label, frames) in enumerate((("true", true), ("drawn", drawn))):
            y = top + clip * pair + row * step
            draw.text((GAP, y + side // 2), label, fill=INK, font=font, anchor="lm")
            for time in range(total):
                x = left + time * step + (3 * GAP if time >= prompt else 0)
                picture.paste(Image.fromarray(frames[clip, time]), (x, y))
    draw.rectangle((line - FRAME // 2, top, line, picture.height - 2 * GAP), fill=DRAWN)
    return picture
