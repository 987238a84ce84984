"""Pictures of `toto robot`: sheets of episodes, and the figure of all arms."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import GAP, INK, PAPER, enlarge
from evaluation.report.figures import GREY, MODEL, PIXELS, PURPLE, RING, SERIES, new_figure
from evaluation.robot.arms_args import VISION
from evaluation.robot.results import ArmsResult

COLUMNS = 6
WIDTH = 190  # pixels of the labels


def even_sides(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) enlarged and cut to even sides, which mp4 needs."""
    frames = enlarge(frames)
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def episode_sheet(rows: dict[str, np.ndarray]) -> Image.Image:
    """Evenly spaced frames of episodes, uint8 (T, R, R, 3) each, a labelled row per episode."""
    drawn = {name: enlarge(frames) for name, frames in rows.items()}
    side = max(frames.shape[1] for frames in drawn.values())
    size = (WIDTH + COLUMNS * (side + GAP), GAP + len(drawn) * (side + 24 + GAP))
    picture = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for row, (name, frames) in enumerate(drawn.items()):
        top = GAP + row * (side + 24 + GAP)
        pen.text((GAP, top + 24 + side // 2), name, fill=INK, font=font, anchor="lm")
        for column, time in enumerate(np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)):
            left = WIDTH + column * (side + GAP)
            pen.text((left, top + 4), f"step {time}", fill=INK, font=font)
            picture.paste(Image.fromarray(frames[time]), (left, top + 24))
    return picture.quantize(192, dither=Image.Dither.NONE)


def draw_arms(result: ArmsResult, file: Path) -> None:
    """Left: success of each arm with its interval, and of each policy seed. Right: R^2 of the action by layer."""
    with_curves = bool(result.curves)
    figure, axes = new_figure(11 if with_curves else 7, 4.4, (1, 2 if with_curves else 1))
    draw_success(axes[0][0], result)
    if with_curves:
        draw_curves(axes[0][1], result)
    figure.savefig(file, format="png", dpi=80)


def draw_success(axes, result: ArmsResult) -> None:
    for place, (name, each) in enumerate(result.arms.items()):
        axes.bar(place, 100 * each.success, 0.6, color=MODEL if name.startswith("toto") else GREY, alpha=0.75)
        axes.plot([place, place], [100 * bound for bound in each.ci95], color="#30363d", linewidth=1.4)
        own = [100 * seed.success for seed in each.seeds]
        spread = np.linspace(-0.2, 0.2, len(own)) if len(own) > 1 else np.zeros(1)
        label = "each policy seed" if place == 0 else None
        axes.plot(place + spread, own, "o", color="#111111", markersize=4, label=label)
    axes.axhline(100 * result.expert.success, color=PIXELS, linestyle=(0, (6, 2)), label="scripted expert")
    axes.axhline(100 * result.random.success, color=PURPLE, linestyle=(0, (1, 1.5)), label="random actions")
    axes.set_xticks(range(len(result.arms)), [short(name) for name in result.arms], rotation=20, ha="right")
    axes.set_ylim(-3, 118)  # room for the legend
    axes.set_yticks(range(0, 101, 20))
    axes.set_title(f"{result.task}: success, %, 95 % intervals", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="upper center", ncols=3)


def draw_curves(axes, result: ArmsResult) -> None:
    for (name, curve), (color, marker) in zip(result.curves.items(), cycle(SERIES)):
        layers = [fit for fit in curve if fit.layer is not None and fit.r2 is not None]
        axes.plot(
            [fit.layer for fit in layers], [fit.r2 for fit in layers], color=color, marker=marker, label=short(name)
        )
        rolled = {row.layer for key, row in result.arms.items() if key == name or key.startswith(f"{name}, layer ")}
        ringed = [fit for fit in layers if fit.layer in rolled]
        axes.plot([fit.layer for fit in ringed], [fit.r2 for fit in ringed], linestyle="", **RING)
    state = next(iter(result.curves.values()))[0].r2
    if state is not None:
        axes.axhline(state, color=GREY, linestyle=(0, (1, 2)), label="state alone")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer (0 = embeddings; ring: rolled out)")
    axes.set_title("R² of the expert's action, held-out demonstrations", fontsize=11)
    axes.legend(frameon=False, fontsize=9)


def short(name: str) -> str:
    """An arm's name for a label: "vision:models/vit-mae" is "vit-mae"."""
    return Path(name).name if name.startswith(VISION) else name
