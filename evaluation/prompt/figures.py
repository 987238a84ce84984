"""The sheet of `toto prompt score`: examples, query, truth, and the label that every way draws."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import DRAWN, GAP, INK, PAPER, PROMPT, framed

TITLES = {
    "truth": "truth",
    "ceiling": "ceiling",
    "tuned": "tuned",
    "wrong_examples": "wrong ex",
    "swapped": "other id",
    "swapped_prompt": "other task",
    "scratch": "scratch",
    "untuned": "untuned",
    "mean_map": "mean map",
}
LEFT, HEAD = 128, 30
SCALE = 64  # about the side of a frame in the sheet, in pixels


def sheet(shown: dict[str, dict], count: int) -> Image.Image:
    """The first episodes of every task, a line each: the prompt in orange, then the truth and drawn labels in blue.

    Args:
        shown: task -> {"task", "rows": (N, frames, R, R, 3), "frames": way -> (N, labels, R, R, 3)}.
    """
    blocks = [_task(name, found, count) for name, found in shown.items()]
    picture = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), PAPER)
    top = 0
    for block in blocks:
        picture.paste(block, (0, top))
        top += block.height
    return picture


def _task(name: str, found: dict, count: int) -> Image.Image:
    task, rows, frames = found["task"], found["rows"], found["frames"]
    labels = len(task.labels)
    given = rows.shape[1] - labels
    ways = {way: frames[way] for way in TITLES if way in frames}
    count = min(count, len(rows))
    side = rows.shape[2] * max(1, round(SCALE / rows.shape[2]))
    step = len(framed(rows[0, 0], INK, rows.shape[2])) - rows.shape[2] + side
    width = LEFT + (given + len(ways) * labels) * step + (len(ways) + 2) * GAP
    picture = Image.new("RGB", (width, HEAD + count * (step + GAP)), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=15)
    draw.text((LEFT, 8), "prompt: examples and query", fill=tuple(c * 6 // 10 for c in PROMPT), font=font)
    for line in range(count):
        y = HEAD + line * (step + GAP)
        draw.text((GAP, y + step // 2), name, fill=INK, font=font, anchor="lm")
        x = LEFT
        for frame in range(given):
            picture.paste(_tile(rows[line, frame], PROMPT, side), (x, y))
            x += step
        for way, title in ((way, TITLES[way]) for way in ways):
            x += GAP
            if line == 0:
                draw.text((x, 8), title, fill=DRAWN, font=font)
            for label in range(labels):
                picture.paste(_tile(ways[way][line, label], DRAWN, side), (x, y))
                x += step
    return picture


def _tile(frame: np.ndarray, colour: tuple[int, int, int], side: int) -> Image.Image:
    times = max(1, side // len(frame))
    return Image.fromarray(framed(frame.repeat(times, 0).repeat(times, 1), colour, side))
