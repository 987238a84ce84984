"""Sheets of labelled tiles, heat maps and overlays; all pictures are PIL's, so that none needs matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import GAP, INK, PAPER

# From dark blue over red to light yellow; lightness rises evenly, so that the order is seen without colour too.
RAMP = ((0, 0, 24), (54, 12, 96), (132, 26, 104), (206, 56, 74), (246, 122, 38), (252, 194, 72), (252, 250, 190))
DIM = 0.45  # brightness of a frame under an overlay
RING = (0, 230, 230)
SMALL, LARGE = 15, 18  # pixels of text
BAR = 160  # pixels of the bar that explains the heat's colours


@dataclass(frozen=True)
class Row:
    """A row of a sheet. label: at the left, lines of text. tiles: uint8 (S, S, 3) each, or None for an empty place.

    notes: a short text below each tile, or None for no line of notes.
    """

    label: str
    tiles: list[np.ndarray | None]
    notes: list[str] | None = None


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 (h, w, 3) -> (side, side, 3) without blending colours."""
    rows, columns = (np.arange(side) * cells // side for cells in picture.shape[:2])
    return picture[rows][:, columns]


def heat(values: np.ndarray, top: float) -> np.ndarray:
    """Values (..., h, w), of which 0 is dark and `top` and more is light -> uint8 (..., h, w, 3)."""
    shares = np.clip(np.asarray(values, float) / (top or 1), 0, 1)
    steps = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(shares, steps, channel) for channel in np.array(RAMP).T], -1).round().astype(np.uint8)


def overlay(frame: np.ndarray, values: np.ndarray, top: float) -> np.ndarray:
    """A frame (R, R, 3), dimmed, under values (h, w): the nearer to `top`, the more of the heat's colour is seen."""
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(frame.shape, values.shape, strict=False))
    shares = np.clip(np.asarray(values, float) / (top or 1), 0, 1)[rows][:, columns, None]
    colour = heat(shares[..., 0], 1).astype(float)
    return ((1 - shares) * DIM * frame + shares * colour).round().astype(np.uint8)


def ringed(frame: np.ndarray, row: int, column: int, grid: tuple[int, int]) -> np.ndarray:
    """A frame with a border around one token of its grid (h, w)."""
    high, wide = frame.shape[0] // grid[0], frame.shape[1] // grid[1]
    top, left, width = row * high, column * wide, max(1, frame.shape[0] // 64)
    found = frame.copy()
    box = found[top : top + high, left : left + wide]
    inner = box[width:-width, width:-width].copy()
    box[:] = RING
    box[width:-width, width:-width] = inner
    return found


def sheet(rows: list[Row], heads: list[str], title: str, scale: tuple[str, str] | None = None) -> Image.Image:
    """Rows of tiles under column heads.

    Args:
        rows: at least one, tiles all of one size. heads: a text above each column; an empty list for none.
        title: lines of text at the top. scale: what the two ends of the heat's colours mean, for a bar at the bottom.
    """
    small, large = (ImageFont.load_default(size=size) for size in (SMALL, LARGE))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    side = next(tile for row in rows for tile in row.tiles if tile is not None).shape[0]
    left = GAP + max(round(pen.multiline_textbbox((0, 0), row.label, font=large)[2]) for row in rows) + 2 * GAP
    above = GAP + round(pen.multiline_textbbox((0, 0), title, font=large)[3]) + GAP
    head = max([0, *(round(pen.multiline_textbbox((0, 0), text, font=small)[3]) + GAP for text in heads)])
    steps = [side + GAP + (SMALL + GAP if row.notes else 0) for row in rows]
    columns = max(len(row.tiles) for row in rows)
    bar = 0 if scale is None else BAR + 4 * GAP + round(sum(pen.textlength(text, font=small) for text in scale))
    titled = GAP + round(pen.multiline_textbbox((0, 0), title, font=large)[2]) + GAP
    wide = max(left + max(columns * (side + GAP), bar), titled)
    picture = Image.new("RGB", (wide, above + head + sum(steps) + GAP + (LARGE + 2 * GAP if scale else 0)), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((GAP, GAP), title, fill=INK, font=large)
    for column, text in enumerate(heads):
        draw.multiline_text((left + column * (side + GAP), above), text, fill=INK, font=small)
    y = above + head
    for row, step in zip(rows, steps, strict=True):
        draw.multiline_text((GAP, y + side // 2), row.label, fill=INK, font=large, anchor="lm")
        for column, tile in enumerate(row.tiles):
            if tile is not None:
                picture.paste(Image.fromarray(tile), (left + column * (side + GAP), y))
            if row.notes:
                draw.text((left + column * (side + GAP), y + side + 2), row.notes[column], fill=INK, font=small)
        y += step
    if scale:
        low, high = scale
        draw.text((left, y + GAP), low, fill=INK, font=small)
        x = left + round(draw.textlength(low, font=small)) + GAP
        ramp = heat(np.linspace(0, 1, BAR)[None].repeat(LARGE, 0), 1)
        picture.paste(Image.fromarray(ramp), (x, y + GAP))
        draw.text((x + BAR + GAP, y + GAP), high, fill=INK, font=small)
    return picture


def save(picture: Image.Image, file: str | Path) -> None:
    """Write a picture as PNG, whole or not at all, creating its folder."""
    from tokenization.files import write_whole

    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: picture.save(path, "png", optimize=True))


def spaced(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly spaced, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
