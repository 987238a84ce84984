"""Pictures of `toto track`: J&F by layer, sheets of overlays, videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import GAP, INK, PAPER, write_movie
from evaluation.report.figures import GREY, MODEL, PIXELS, PURPLE, RING, UNTRAINED, new_figure
from evaluation.track.metric import outline
from evaluation.track.reading import Sequence
from evaluation.track.results import LayerScore, TrackResult
from evaluation.track.run import Finished

LEVELS = {
    "copy": ("first mask copied", GREY, (0, (1, 1.5))),
    "position": ("position only", PURPLE, (0, (5, 1))),
    "patches": ("raw 8 x 8 patches", PIXELS, (0, (6, 2, 1, 2))),
    "ceiling": ("ceiling of the grid", "#111111", (0, (8, 3))),
}
TRUE = "true mask"
# Okabe and Ito's colours; objects beyond them start anew.
COLOURS = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167)])
COLUMNS, WIDTH = 6, 210  # of a sheet; pixels of a frame
LONGEST = 240  # frames of a video, which is evenly thinned beyond


def draw(result: TrackResult, file: Path) -> None:
    """J&F by layer as the paper's Figure 9, with 95 % intervals over sequences and the floors as levels."""
    figure, axes = new_figure(7.2, 4.6)
    twin = result.baselines.get("untrained")
    _curve(axes, result.layers, color=MODEL, marker="o", label=Path(result.model).name)
    if twin is not None:
        _curve(axes, twin.layers, color=UNTRAINED, marker="^", label="untrained")
    for name, (label, colour, dashes) in LEVELS.items():
        if name in result.baselines:
            axes.axhline(100 * result.baselines[name].jf, color=colour, linestyle=dashes, linewidth=1.8, label=label)
    axes.plot(result.best.layer, 100 * result.best.jf, linestyle="none", label="largest on these sequences", **RING)
    axes.set_xlabel("layer (0 = embeddings)")
    axes.set_ylabel("J&F, %")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10, handlelength=3)
    figure.savefig(file, format="png", dpi=110)


def _curve(axes, rows: list[LayerScore], **style) -> None:
    layers = [row.layer for row in rows]
    axes.plot(layers, [100 * row.jf for row in rows], linewidth=2.2, markersize=5, **style)
    if all(row.ci95 is not None for row in rows):
        low, high = np.array([row.ci95 for row in rows]).T * 100
        axes.fill_between(layers, low, high, color=style["color"], alpha=0.12, linewidth=0)


def overlay(frame: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A frame, uint8 (H, W, 3), with its objects (H, W) tinted and outlined."""
    found = frame.astype(float)
    for number in np.unique(numbers[(numbers > 0) & (numbers < 255)]):
        mask, colour = numbers == number, COLOURS[(number - 1) % len(COLOURS)]
        found[mask] = 0.5 * found[mask] + 0.5 * colour
        found[outline(mask)] = colour
    return found.round().astype(np.uint8)


def sheet(rows: dict[str, list[np.ndarray]], times: list[int]) -> Image.Image:
    """Overlays of some frames, a row for each name."""
    height, width = next(iter(rows.values()))[0].shape[:2]
    tall, left, top = round(WIDTH * height / width), 150, 34
    picture = Image.new("RGB", (left + len(times) * (WIDTH + GAP), top + len(rows) * (tall + GAP)), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=17)
    for column, time in enumerate(times):
        pen.text((left + column * (WIDTH + GAP), 8), f"frame {time}", fill=INK, font=font)
    for row, (name, frames) in enumerate(rows.items()):
        y = top + row * (tall + GAP)
        pen.text((GAP, y + tall // 2), name, fill=INK, font=font, anchor="lm")
        for column, frame in enumerate(frames):
            small = Image.fromarray(frame).resize((WIDTH, tall), Image.Resampling.LANCZOS)
            picture.paste(small, (left + column * (WIDTH + GAP), y))
    return picture


def write_overlays(sequence: Sequence, finished: Finished, kinds: list[str], shown: dict[str, str], stem: Path) -> None:
    """Write STEM.png, a sheet of a few frames, and STEM.mp4, all frames with true mask and the first shown kind.

    Args:
        kinds: that were drawn, in order. shown: kind -> label of the rows.
    """
    last = sequence.num_frames - 2
    times = sorted({round(t) for t in np.linspace(0, last, COLUMNS)})
    played = sorted({round(t) for t in np.linspace(0, last, min(last + 1, LONGEST))})
    rows: dict[str, list[np.ndarray]] = {label: [] for label in (TRUE, *shown.values())}
    movie = []
    for t, (frame, labels) in enumerate(sequence.frames()):
        if t > last:
            break
        if t not in times and t not in played:
            continue
        drawn = finished.drawn(sequence, kinds, t)
        pictures = [overlay(frame, labels), *(overlay(frame, drawn[kind]) for kind in shown)]
        if t in played:
            movie.append(np.concatenate(pictures[:2], axis=1))
        if t in times:
            for row, picture in zip(rows.values(), pictures, strict=True):
                row.append(picture)
    picture = sheet(rows, times).quantize(192, dither=Image.Dither.NONE)
    picture.save(stem.with_name(f"{stem.name}.png"), optimize=True)
    frames = np.stack(movie)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # yuv420p needs even sides
    write_movie(stem.with_name(f"{stem.name}.mp4"), frames, 12)
