"""`toto visualize tokens`: what a visual tokenizer keeps: codes, reconstruction and error."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.visualize.args import OneInputArgs, check_output
from tokenization.terminal.next_command import beside, say_next
from training.flags import option, parse, refuse_idle, typed_flags

if TYPE_CHECKING:
    from PIL import Image

DESCRIPTION = (
    "Show what the visual tokenizer keeps of an image or a clip: the codes as colours, the frames that they decode to, "
    "and the error."
)
COLUMNS = 8  # most frames that are shown
HUE_STEP, LIGHT_STEP = 0.618034, 0.754878  # from one code to the next, of a turn
TOP = 64.0  # grey levels of error at which the heat's colours end
TILE = 128  # pixels of a frame's side in the picture
NUMBERED = 256  # the same where numbers of codes have to be read


@dataclass(frozen=True)
class TokensArgs(OneInputArgs):
    model: str | None = option(
        None, "Hub id, folder or run of a Toto, or of a visual tokenizer (default: the small tokenizer that ships)"
    )
    numbers: bool = option(False, "write the number of each code into its cell")

    def __post_init__(self):
        check_output(self.output, (".png",))
        super().__post_init__()


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((TokensArgs,), argv, "toto visualize tokens", DESCRIPTION)
    if "fps" in typed_flags(argv):
        refuse_idle(argv, ("stride",), "next to --fps")

    from evaluation.backbones.contract import default_device
    from evaluation.results import command_line
    from evaluation.visualize.drawing import save
    from evaluation.visualize.inputs import codes_of_frames, read_one, row_of
    from evaluation.visualize.results import TokensResult
    from tokenization.files import write_json
    from tokenization.processing_toto import SHIPPED, TotoProcessor
    from training.engine.device import versions
    from training.find_model import resolve_model

    if args.model is None:
        processor = TotoProcessor.default()
    else:
        processor = TotoProcessor.from_visual_tokenizer(resolve_model(args.model))
    processor = processor.to(default_device())
    clip, image = read_one(args, processor.resolution, processor.num_frames)
    codes = codes_of_frames(processor, clip.frames)
    decoded = processor.decode(row_of(codes, image))[0]
    codes = codes[0].numpy()
    name = args.model or SHIPPED.name
    psnr = [peak_ratio(each) for each in errors(clip.frames, decoded)]
    result = TokensResult(
        command=command_line("visualize", ["tokens", *argv]),
        model=name,
        input=args.input,
        num_codes=processor.num_codes,
        psnr=psnr,
        different=[len(np.unique(frame)) for frame in codes],
        codes=codes.tolist(),
        versions=versions(),
    )
    save(draw(name, clip.frames, codes, decoded, psnr, processor.num_codes, args.numbers), args.output)
    write_json(place := Path(args.output).with_suffix(".json"), result.to_json())
    shown = ", ".join("exact" if value is None else f"{value:.1f}" for value in psnr)
    print(f"PSNR by frame, dB: {shown}; wrote {args.output} and {place}")
    named = ["--tokenizer", args.model] if args.model else []
    say_next("evaluate-tokenizer", *named, "--dataset", "toyworld:photos", "--output", beside(args.output, "tokenizer"))


def code_pictures(codes: np.ndarray) -> np.ndarray:
    """Codes (..., h, w) as colours, uint8 (..., h, w, 3): one for each code, always the same.

    Hue and brightness turn by irrational steps from code to code, so that neighbouring numbers look different. The
    colour says nothing but which code it is; some of many hundred codes look alike.
    """
    hue, light = codes[..., None] * HUE_STEP % 1, 0.55 + 0.4 * (codes[..., None] * LIGHT_STEP % 1)
    table = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return np.rint(255 * light * (0.25 + 0.75 * table)).astype(np.uint8)


def errors(frames: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Root mean squared error over the colour channels of every pixel: uint8 (T, R, R, 3) twice -> float (T, R, R)."""
    return np.sqrt(np.square(frames.astype(float) - decoded).mean(-1))


def peak_ratio(error: np.ndarray) -> float | None:
    """PSNR in dB of a frame's errors (R, R); None without any error."""
    mean = np.square(error).mean()
    return None if mean == 0 else float(10 * np.log10(255**2 / mean))


def draw(
    name: str,
    frames: np.ndarray,
    codes: np.ndarray,
    decoded: np.ndarray,
    psnr: list[float | None],
    num_codes: int,
    numbers: bool,
) -> Image.Image:
    """Frames, codes (T, h, w), decoded frames and their errors, one row each."""
    from evaluation.visualize.drawing import Row, heat, resized, sheet, spaced

    columns = spaced(len(frames), COLUMNS)
    side = NUMBERED if numbers else TILE
    maps = [resized(each, side) for each in code_pictures(codes[columns])]
    if numbers:
        maps = [numbered(each, codes[t]) for each, t in zip(maps, columns, strict=True)]
    wrong = errors(frames, decoded)
    notes = ["exact" if psnr[t] is None else f"{psnr[t]:.1f} dB" for t in columns]
    rows = [
        Row("picture", [resized(frames[t], side) for t in columns]),
        Row("codes", maps, [f"{len(np.unique(codes[t]))} different" for t in columns]),
        Row("decoded", [resized(decoded[t], side) for t in columns], notes),
        Row("error", [resized(heat(wrong[t], TOP), side) for t in columns]),
    ]
    h, w = codes.shape[1:]
    title = f"{Path(name).name}: {h} x {w} of {num_codes} codes a frame"
    scale = ("error 0", f"{TOP:.0f} of 255 and more")
    if len(columns) == 1:  # an image: side by side
        tiles, below = [row.tiles[0] for row in rows], [row.notes[0] if row.notes else "" for row in rows]
        return sheet([Row("", tiles, below)], [row.label for row in rows], title, scale)
    return sheet(rows, [f"frame {t}" for t in columns], title, scale)


def numbered(picture: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """A map of codes (S, S, 3) with the number of each code in its cell."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    pen, (h, w) = ImageDraw.Draw(image), codes.shape
    high, wide = len(picture) / h, len(picture) / w
    font = ImageFont.load_default(size=max(6, int(min(high, wide / 2.2))))
    for row in range(h):
        for column in range(w):
            middle = ((column + 0.5) * wide, (row + 0.5) * high)
            pen.text(middle, str(codes[row, column]), fill=(0, 0, 0), font=font, anchor="mm")
    return np.asarray(image)
