"""`toto visualize surprise`: nats of every token of a clip, as a heat map next to its frames."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.visualize.args import OneInputArgs, check_output, require_model
from tokenization.terminal.next_command import beside, first_video, say_next
from training.flags import parse, refuse_idle, typed_flags

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = (
    "Show how surprised a Toto is by every token of a clip, given all the true ones before it: a heat map in nats next "
    "to the frames, as a sheet (--output FILE.png) or a movie (FILE.mp4 or .gif)."
)
COLUMNS = 16  # most frames of a sheet
TOP = 99.0  # percentile of the nats at which the heat's colours end, so that one odd token does not darken all others


@dataclass(frozen=True)
class SurpriseArgs(OneInputArgs):
    def __post_init__(self):
        require_model(self.model)
        check_output(self.output, (".png", ".mp4", ".gif"))
        super().__post_init__()


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((SurpriseArgs,), argv, "toto visualize surprise", DESCRIPTION)
    if "fps" in typed_flags(argv):
        refuse_idle(argv, ("stride",), "next to --fps")

    from evaluation.results import command_line
    from evaluation.visualize.drawing import save
    from evaluation.visualize.inputs import codes_of_frames, load, read_one, row_of
    from evaluation.visualize.likelihood import check_predicts, surprise_of
    from evaluation.visualize.results import SurpriseResult
    from tokenization.files import write_json
    from training.engine.device import versions

    model, processor = load(args.model)
    check_predicts(model)
    clip, image = read_one(args, processor.resolution, model.config.num_frames, model.config.context_frames)
    nats = surprise_of(model, row_of(codes_of_frames(processor, clip.frames), image))[0].double().numpy()
    result = SurpriseResult(
        command=command_line("visualize", ["surprise", *argv]),
        model=args.model,
        input=args.input,
        mean=float(nats.mean()),
        frames=nats.mean((1, 2)).tolist(),
        guess=math.log(model.config.num_codes),
        nats=nats.round(4).tolist(),
        versions=versions(),
    )
    output = Path(args.output)
    if output.suffix == ".png":
        save(draw(args.model, clip.frames, nats, result.guess), output)
    else:
        write_movie_whole(output, movie(clip.frames, nats), clip.fps or 2.0)
    write_json(place := output.with_suffix(".json"), result.to_json())
    print(f"{result.mean:.3f} nats a token (a guess among all codes: {result.guess:.2f}); wrote {output} and {place}")
    if image:
        shown = ["--input", args.input, "--output", beside(output, "tokens.png")]
        say_next("visualize", "tokens", "--model", args.model, *shown)
    else:
        shown = ["--video", first_video(args.input) or "toyworld:motion:0", "--output", beside(output, "continued")]
        say_next("generate", "--model", args.model, *shown)


def top_of(nats: np.ndarray) -> float:
    """Nats at which the heat's colours end."""
    import numpy as np

    return max(float(np.percentile(nats, TOP)), 1e-3)


def draw(model: str, frames: np.ndarray, nats: np.ndarray, guess: float):
    """Frames uint8 (T, R, R, 3) above their heat maps, of nats (T, h, w), and above both laid over each other."""
    from evaluation.pictures import enlarge
    from evaluation.visualize.drawing import Row, heat, overlay, resized, sheet, spaced

    top, columns, big = top_of(nats), spaced(len(frames), COLUMNS), enlarge(frames)
    rows = [
        Row("clip", [big[t] for t in columns]),
        Row(
            "surprise",
            [resized(heat(nats[t], top), big.shape[1]) for t in columns],
            [f"{nats[t].mean():.2f} nats" for t in columns],
        ),
        Row("both", [overlay(big[t], nats[t], top) for t in columns]),
    ]
    title = (
        f"{Path(model).name}: nats of each token, given all before it; mean {nats.mean():.2f}\n"
        f"(a guess among all codes: {guess:.2f} nats)"
    )
    return sheet(rows, [f"frame {t}" for t in columns], title, ("0 nats", f"{top:.1f} nats and more"))


def movie(frames: np.ndarray, nats: np.ndarray) -> np.ndarray:
    """Frames (T, R, R, 3) and their heat maps side by side: uint8 (T, H, W, 3), H and W even."""
    import numpy as np

    from evaluation.pictures import GAP, enlarge
    from evaluation.visualize.drawing import heat, resized

    big, top = enlarge(frames), top_of(nats)
    gap = np.full((big.shape[1], GAP, 3), 255, np.uint8)
    shown = np.stack(
        [
            np.concatenate([frame, gap, resized(heat(each, top), len(frame))], 1)
            for frame, each in zip(big, nats, strict=True)
        ]
    )
    height, width = shown.shape[1:3]  # yuv420p needs even sides
    return np.pad(shown, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=255)


def write_movie_whole(file: Path, frames: np.ndarray, fps: float) -> None:
    """Write a movie, whole or not at all; its format follows from the suffix, which a temporary name must keep."""
    from evaluation.pictures import write_movie

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".partial-{file.name}")
    try:
        write_movie(partial, frames, fps)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
