"""The table, the figure and the sheet of `toto prompt rotation`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import DRAWN, FRAME, GAP, INK, PAPER, enlarge
from evaluation.prompt.rotation_results import RotationResult
from evaluation.report.figures import GREY, MODEL, new_figure

NAMES = {
    "greedy": "model, greedy",
    "sampled": "model, sampled",
    "copy": "copy last frame",
    "flow": "optical flow",
    "untrained": "untrained",
    "ceiling": "ceiling: true frames through the tokenizer",
    "plain": "ceiling, compared with plain views",
}
STYLES = {
    "greedy": {"color": MODEL, "linewidth": 2.4, "marker": "o", "markersize": 4},
    "sampled": {"color": MODEL, "linewidth": 2.4, "marker": "s", "markersize": 4},
    "copy": {"color": GREY, "linewidth": 1.6, "linestyle": (0, (1, 1.5))},
    "flow": {"color": "#D55E00", "linewidth": 1.8, "linestyle": (0, (6, 2))},
    "untrained": {"color": "#B07A00", "linewidth": 1.8, "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "ceiling": {"color": "#111111", "linewidth": 1.4, "linestyle": (0, (8, 3))},
    "plain": {"color": "#56B4E9", "linewidth": 1.4, "linestyle": (0, (2, 2))},
}
OTHERS = ("#009E73", "#9a4f80", "#882255")  # models of --compare
SHOWN = (1, 2, 4, 8)  # horizons of the table


def table(result: RotationResult) -> str:
    """Every measure at SHOWN horizons and over all drawn frames, a row per way of continuing."""
    shown = [horizon for horizon in SHOWN if horizon <= result.num_frames]
    width = max(map(len, NAMES.values())) + 2
    lines = [
        f"\n{result.clips} {result.split} objects of {result.dataset}: {result.num_prompt_frames} prompt frames, "
        f"{result.num_frames} drawn; guessed angles: 90 degrees, {100 * result.chance:.1f} % within half a step",
        "",
        f"{'':<{width}}{'median error, degrees':<{6 * len(shown) + 22}}{'within half a step, %':<26}PSNR, dB",
        f"{'horizon':<{width}}" + "".join(f"{h:>6}" for h in shown) + f"{'all':>20}{'all':>22}{'all':>10}",
    ]
    for name, scores in result.scores.items():
        cells = "".join(f"{scores.error[horizon - 1]:6.1f}" for horizon in shown)
        error = f"{scores.all_error:.1f} [{scores.all_error_ci95[0]:.1f}, {scores.all_error_ci95[1]:.1f}]"
        low, high = scores.all_within_ci95
        within = f"{100 * scores.all_within:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"{NAMES[name]:<{width}}{cells}{error:>20}{within:>22}{np.mean(scores.psnr):>10.1f}")
    return "\n".join(lines)


def draw(result: RotationResult, others: dict[str, RotationResult], file: Path) -> None:
    """Write error, share within half a step and PSNR against the horizon, a panel each.

    others: name -> result of another model on the same clips, of which the model's own curve is drawn.
    """
    from matplotlib.lines import Line2D

    figure, axes = new_figure(12.5, 4.4, (1, 3))
    horizons = np.arange(1, result.num_frames + 1)
    lines = [(NAMES[name], scores, STYLES[name]) for name, scores in result.scores.items()]
    first = next(iter(result.scores))
    lines[0] = (f"{Path(result.model).name}, {first}", *lines[0][1:])
    for colour, other in zip(OTHERS, others.values(), strict=False):
        name, scores = next(iter(other.scores.items()))
        lines.insert(1, (f"{Path(other.model).name}, {name}", scores, STYLES[name] | {"color": colour}))
    for label, scores, style in lines:
        for panel, values, bounds in zip(
            axes[0],
            (scores.error, 100 * np.array(scores.within), scores.psnr),
            (scores.error_ci95, 100 * np.array(scores.within_ci95), None),
            strict=True,
        ):
            if panel is axes[0, 2] and label == NAMES["plain"]:
                continue  # its frames are the ceiling's
            panel.plot(horizons, values, **style)
            if bounds is not None:
                panel.fill_between(horizons, *np.array(bounds).T, color=style["color"], alpha=0.12, linewidth=0)
    titles = ("Angle error, median, degrees", "Within half a step, % of objects", "PSNR, dB")
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=11, loc="left", fontweight="bold", color="#1f2328")
        panel.set_xlabel("drawn frame", fontsize=10)
        panel.set_xticks(horizons if len(horizons) <= 16 else horizons[:: len(horizons) // 8])
    axes[0, 0].set_ylim(-4, 184)
    axes[0, 0].set_yticks(range(0, 181, 45))
    axes[0, 1].set_ylim(-2, 102)
    entries = [Line2D([], [], label=label, **style) for label, _, style in lines]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False, fontsize=10, handlelength=3.2)
    figure.savefig(file, format="png", dpi=110)


def sheet(
    video: np.ndarray, prompts: np.ndarray, drawn: np.ndarray, angle: np.ndarray, found: np.ndarray, count: int
) -> Image.Image:
    """The first objects, each as a row of true frames above one of the prompt and the drawn frames, with their angles.

    video (C, T, 64, 64, 3): the true frames. prompts (C, P, R, R, 3): as tokens show them. drawn (C, G, R, R, 3).
    angle (C, T), found (C, G): degrees, true and found in the drawn frames.
    """
    count, prompt, total = min(count, len(video)), prompts.shape[1], video.shape[1]
    true, shown = enlarge(video[:count]), enlarge(np.concatenate([prompts[:count], drawn[:count]], axis=1))
    side, text = true.shape[2], 22
    left, top, step = 70, 40, true.shape[2] + GAP
    pair = 2 * (side + text) + 2 * GAP
    line = left + prompt * step + GAP
    picture = Image.new("RGB", (left + total * step + 3 * GAP, top + count * pair), PAPER)
    draw, font, small = ImageDraw.Draw(picture), *(ImageFont.load_default(size=size) for size in (20, 16))
    draw.text((left, 8), f"prompt: {prompt} true frames", fill=INK, font=font)
    draw.text(
        (line + 2 * GAP, 8), f"{total - prompt} drawn frames, with the angle that each shows", fill=DRAWN, font=font
    )
    for clip in range(count):
        for row, (label, frames) in enumerate((("true", true), ("drawn", shown))):
            y = top + clip * pair + row * (side + text)
            draw.text((GAP, y + side // 2), label, fill=INK, font=font, anchor="lm")
            for time in range(total):
                x = left + time * step + (3 * GAP if time >= prompt else 0)
                picture.paste(Image.fromarray(frames[clip, time]), (x, y))
                if row and time < prompt:
                    continue
                degrees = found[clip, time - prompt] if row else angle[clip, time]
                colour = DRAWN if row else INK
                draw.text(
                    (x + side // 2, y + side + text // 2), f"{degrees:.0f}°", fill=colour, font=small, anchor="mm"
                )
    draw.rectangle((line - FRAME // 2, top, line, picture.height - 2 * GAP), fill=DRAWN)
    return picture.quantize(64)
