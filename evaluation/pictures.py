"""Pictures of a continued clip: a labelled sheet of frames (PNG) and a side-by-side movie (mp4, gif)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's orange and blue, which colour-blind readers can distinguish.
PROMPT, DRAWN = (230, 159, 0), (0, 114, 178)
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (236, 236, 236)
TARGET = 128  # pixels of a frame's side after enlarging, by a whole factor
FRAME, GAP = 4, 6
LEFT, TOP = 170, 44  # of a sheet's first frame, after the labels


def enlarge(frames: np.ndarray) -> np.ndarray:
    """uint8 (..., R, R, 3) -> the same with each pixel repeated as a square block, so that small frames stay sharp."""
    factor = max(1, round(TARGET / frames.shape[-2]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def framed(frame: np.ndarray | None, colour: tuple[int, int, int], side: int) -> np.ndarray:
    """A frame (side, side, 3) in a coloured border; an empty tile for None."""
    tile = np.empty((side + 2 * FRAME, side + 2 * FRAME, 3), np.uint8)
    tile[:] = colour if frame is not None else FAINT
    if frame is not None:
        tile[FRAME:-FRAME, FRAME:-FRAME] = frame
    return tile


def _rows(result: dict) -> list[tuple[str, np.ndarray]]:
    """The rows of a sheet as (label, enlarged frames)."""
    generated = result["generated"]
    rows = [("true", result["true"]), ("reconstructed", result["reconstructed"])]
    rows += [(f"generated {k + 1}" if len(generated) > 1 else "generated", row) for k, row in enumerate(generated)]
    return [(label, enlarge(frames)) for label, frames in rows]


def _tile(frames: np.ndarray, row: int, time: int, prompt: int) -> np.ndarray:
    """Frame `time` of row `row`: orange for prompt frames, blue for generated ones, grey for others."""
    colour = PROMPT if time < prompt else DRAWN if row >= 2 else (150, 150, 150)
    return framed(frames[time] if time < len(frames) else None, colour, frames.shape[1])


def sheet(result: dict) -> Image.Image:
    """A sheet with the rows true, reconstructed and generated, one column per frame; of `draw_continuation`."""
    prompt, total = result["num_prompt_frames"], result["num_prompt_frames"] + result["num_frames"]
    rows = _rows(result)
    font = ImageFont.load_default(size=22)
    step = rows[0][1].shape[1] + 2 * FRAME + GAP
    picture = Image.new("RGB", (LEFT + step * total + GAP, TOP + step * len(rows) + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((LEFT, 10), f"prompt: {prompt} true frames", fill=_dark(PROMPT), font=font)
    draw.text((LEFT + step * prompt, 10), f"{result['num_frames']} generated frames", fill=DRAWN, font=font)
    for row, (label, frames) in enumerate(rows):
        draw.text((GAP, TOP + step * row + step // 2), label, fill=INK, font=font, anchor="lm")
        for time in range(total):
            place = (LEFT + step * time, TOP + step * row)
            picture.paste(Image.fromarray(_tile(frames, row, time, prompt)), place)
    return picture


def cut(picture: Image.Image, frames: int) -> list[list[Image.Image]] | None:
    """The framed tiles of a `sheet` with this many columns, one list per row; None if the picture has other sizes."""
    step, rest = divmod(picture.width - LEFT - GAP, frames)
    if rest or step <= 2 * FRAME + GAP:
        return None
    rows, rest = divmod(picture.height - TOP - GAP, step)
    if rest or rows < 3:
        return None
    side = step - GAP
    places = [[(LEFT + step * time, TOP + step * row) for time in range(frames)] for row in range(rows)]
    return [[picture.crop((x, y, x + side, y + side)) for x, y in row] for row in places]


def _dark(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """A darker colour, readable as text on white."""
    return tuple(value * 6 // 10 for value in colour)


def panel(result: dict) -> np.ndarray:
    """The rows of the sheet side by side, one movie frame per time step: uint8 (T, H, W, 3), H and W even."""
    prompt, total = result["num_prompt_frames"], result["num_prompt_frames"] + result["num_frames"]
    rows = _rows(result)
    movie = []
    for time in range(total):
        tiles = [_tile(frames, row, time, prompt) for row, (_, frames) in enumerate(rows)]
        movie.append(np.concatenate([np.pad(t, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for t in tiles], 1))
    movie = np.stack(movie)
    height, width = movie.shape[1:3]  # yuv420p needs even sides
    return np.pad(movie, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=255)


def write_movie(path: Path, frames: np.ndarray, fps: float, full_colour: bool = False) -> None:
    """Write frames, uint8 (T, H, W, 3) with even H and W, as .gif, or as .mp4 (H.264; MPEG-4 if PyAV lacks libx264).

    full_colour: keep the colour of every pixel (H.264 alone), not one for each 2 x 2; browsers do not show such films.
    """
    if path.suffix == ".gif":
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
        return

    from fractions import Fraction

    import av

    codec, options = ("libx264", {"crf": "16"}) if "libx264" in av.codecs_available else ("mpeg4", {"b": "4000000"})
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if full_colour and codec == "libx264" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
