"""Which colours a visual tokenizer can show: the greys of label frames, or the few colours that survive it.

A tokenizer that was trained on a small world shows what is in it: one whose flat greys come back as other colours
cannot draw grey-coded labels, and a model of its tokens could never be right.
"""

from __future__ import annotations

import numpy as np

from tokenization.toyworld import sprites
from training.flags import require

GREY_ERROR = 6.0  # levels of 256: largest error of a flat grey in a tokenizer that shows greys
SURVIVES = 0.8  # share of the pixels of a square that must come back nearest to its colour
BACKGROUND = (0, 0, 0)
# Colours tried: the world's hues, then the corners of the cube of colours.
CANDIDATES = (
    *sprites.HUES.values(),
    *((255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)),
)


def through_tokenizer(processor, frames: np.ndarray) -> np.ndarray:
    """Frames uint8 (N, R, R, 3), encoded and decoded."""
    from tokenization.sequences import video_rows

    codes = processor.encode_frames(frames)
    return processor.decode(video_rows(codes[:, None], end=False))[:, 0]


def grey_error(processor) -> float:
    """The largest error of flat greys through the tokenizer, by the mean of all pixels, in levels of 256."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    side = processor.resolution
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), side, side, 3)).copy()
    found = through_tokenizer(processor, frames).reshape(len(levels), -1).mean(1)
    return float(np.abs(found - levels).max())


def colours_shown(processor) -> np.ndarray:
    """The colours for label frames, background first: all greys, or those of CANDIDATES that survive.

    A candidate survives if a square of it, two tokens wide on the background, comes back nearest to its own colour,
    among the background and the colours chosen before, and if those still survive next to it. Except for the
    background, they are in order of their brightness (mean of channels).

    Returns:
        uint8 (n, 3).
    Raises:
        ValueError: fewer than two colours survive.
    """
    if grey_error(processor) <= GREY_ERROR:
        return np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    side, token = processor.resolution, processor.resolution // processor.grid[0]
    square = slice(side // 2 - token * (side // 2 // token > 1), side // 2 + token)
    frames = np.zeros((len(CANDIDATES), side, side, 3), np.uint8)
    frames[:, square, square] = np.array(CANDIDATES, np.uint8)[:, None, None]
    shown = through_tokenizer(processor, frames)[:, square, square].reshape(len(CANDIDATES), -1, 3)
    around = through_tokenizer(processor, np.zeros((1, side, side, 3), np.uint8)).reshape(1, -1, 3)

    def survive(chosen: list[int]) -> bool:
        palette = np.array([BACKGROUND, *(CANDIDATES[k] for k in chosen)], float)
        pixels = [around[0], *(shown[k] for k in chosen)]
        nearest = [((each[:, None].astype(float) - palette) ** 2).sum(-1).argmin(1) for each in pixels]
        return all((each == k).mean() >= SURVIVES for k, each in enumerate(nearest))

    chosen: list[int] = []
    for k in range(len(CANDIDATES)):
        if survive([*chosen, k]):
            chosen.append(k)
    require(
        len(chosen) >= 2,
        f"The model's visual tokenizer shows only {len(chosen)} of {len(CANDIDATES)} colours, and no greys, so it "
        "cannot show labels; take a model with another tokenizer.",
    )
    found = np.array([CANDIDATES[k] for k in chosen], np.uint8)
    return np.concatenate([np.array([BACKGROUND], np.uint8), found[np.argsort(found.mean(1), kind="stable")]])
