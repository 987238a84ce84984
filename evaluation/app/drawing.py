"""Pictures of the page: films of frames, maps of numbers in colour, marked tokens."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.pictures import DRAWN, PROMPT, framed
from evaluation.visualize.tokens import code_pictures

SIDE = 320  # pixels of a large picture
SMALL = 96  # pixels of a frame in a film
COLUMNS = 8  # frames in a row of a film, so that it can be read on a phone
MARK, SHADE = (255, 64, 64), (0, 0, 0)
OTHER = (150, 150, 150)


def enlarged(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 (R, R, 3) -> (side, side, 3) with sharp pixels where it grows."""
    kind = Image.Resampling.NEAREST if picture.shape[0] <= side else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((side, side), kind))


def code_map(codes: np.ndarray) -> np.ndarray:
    """Codes (h, w) as coloured squares, with their numbers where there is room: uint8 (SIDE, SIDE, 3)."""
    picture = Image.fromarray(enlarged(code_pictures(codes)))
    cell = SIDE / len(codes)
    if cell >= 30:
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=cell / 3)
        for (row, column), code in np.ndenumerate(codes):
            place = ((column + 0.5) * cell, (row + 0.5) * cell)
            draw.text(place, str(code), fill=(0, 0, 0), font=font, anchor="mm")
    return np.asarray(picture)


def marked(picture: np.ndarray, row: int, column: int, grid: tuple[int, int]) -> np.ndarray:
    """A square picture with a frame around one token of its grid."""
    image = Image.fromarray(picture)
    cell_y, cell_x = picture.shape[0] / grid[0], picture.shape[1] / grid[1]
    box = (column * cell_x, row * cell_y, (column + 1) * cell_x - 1, (row + 1) * cell_y - 1)
    draw = ImageDraw.Draw(image)
    draw.rectangle([box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2], outline=SHADE, width=5)
    draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=MARK, width=3)
    return np.asarray(image)


def film(frames: np.ndarray, total: int | None = None, prompt: int | None = None) -> np.ndarray:
    """Frames in rows of COLUMNS, uint8 (H, W, 3).

    Args:
        frames: uint8 (T, R, R, 3).
        total: number of places; those without a frame are empty. None: T.
        prompt: the first frames have an orange border and the others a blue one; None: all have a grey one.
    """
    total = len(frames) if total is None else total
    tiles = []
    for time in range(-(-total // COLUMNS) * COLUMNS):
        colour = OTHER if prompt is None else PROMPT if time < prompt else DRAWN
        frame = enlarged(frames[time], SMALL) if time < len(frames) else None
        tile = framed(frame, colour, SMALL)
        tiles.append(tile if time < total else np.full_like(tile, 255))
    if total < COLUMNS:
        tiles = tiles[:total]
    rows = [np.concatenate(tiles[start : start + COLUMNS], 1) for start in range(0, len(tiles), COLUMNS)]
    return np.concatenate(rows, 0)
