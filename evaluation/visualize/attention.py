"""`toto visualize attention`: what a token of a clip attends to, frame by frame (as the paper's App. A.10)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.visualize.args import OneInputArgs, check_output, require_model
from tokenization.terminal.next_command import beside, say_next
from training.flags import option, parse, refuse_idle, require, require_choice, typed_flags

if TYPE_CHECKING:
    import numpy as np
    import torch

DESCRIPTION = (
    "Show what one token of a clip attends to: exact attention probabilities of a Toto over the frames that the token "
    "sees, for each block. Choose the token by its place in the grid (--row, --column) or by a pixel (--point)."
)
COLUMNS = 16  # most frames that are shown


@dataclass(frozen=True)
class AttentionArgs(OneInputArgs):
    frame: int | None = option(None, "frame of the token, from 0 (default: the last one)")
    row: int | None = option(None, "row of the token in the grid, from 0 at the top")
    column: int | None = option(None, "column of the token in the grid, from 0 at the left")
    point: list[int] = option([], "X Y: in place of --row and --column, a pixel of the frame as the model reads it")
    predicting: bool = option(
        False, "attention of the position that predicts the token, which is the one before it, not of the token itself"
    )
    layers: list[int] = option([], "numbers of the blocks, from 1 (default: all)")
    heads: str = option("mean", "mean over the heads of a block, or all")

    def __post_init__(self):
        require_model(self.model)
        check_output(self.output, (".png",))
        super().__post_init__()
        require_choice(self, "heads", ("mean", "all"))
        require(
            bool(self.point) != (self.row is not None and self.column is not None)
            and bool(self.point) == (self.row is None and self.column is None),
            "Choose the token with --row and --column, or with --point X Y.",
        )
        require(len(self.point) in (0, 2), f"--point has {len(self.point)} numbers; give two, X Y, in pixels.")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((AttentionArgs,), argv, "toto visualize attention", DESCRIPTION)
    if "fps" in typed_flags(argv):
        refuse_idle(argv, ("stride",), "next to --fps")

    from evaluation.backbones.attention_maps import attention_of
    from evaluation.results import command_line
    from evaluation.visualize.drawing import save
    from evaluation.visualize.inputs import codes_of_frames, load, read_one, row_of
    from evaluation.visualize.results import AttentionResult
    from tokenization.files import write_json
    from training.engine.device import versions

    model, processor = load(args.model)
    blocks = args.layers or list(range(1, model.config.num_hidden_layers + 1))
    for block in blocks:
        require(
            1 <= block <= model.config.num_hidden_layers,
            f"--layers has {block}, but the model has the blocks 1 to {model.config.num_hidden_layers}.",
        )
    clip, image = read_one(args, processor.resolution, model.config.num_frames, model.config.context_frames)
    position = place_of(args, processor.grid, processor.resolution, len(clip.frames))
    ids = row_of(codes_of_frames(processor, clip.frames), image)
    maps = attention_of(model, ids, position, args.predicting)[[block - 1 for block in blocks]]
    picture = draw(args, clip.frames, maps, blocks, position)
    result = AttentionResult(
        command=command_line("visualize", ["attention", *argv]),
        model=args.model,
        input=args.input,
        position=list(position),
        predicting=args.predicting,
        heads=[
            summary(heads, block, head)
            for block, each in zip(blocks, maps, strict=True)
            for head, heads in ([(None, each.mean(0))] if args.heads == "mean" else enumerate(each))
        ],
        versions=versions(),
    )
    save(picture, args.output)
    write_json(place := Path(args.output).with_suffix(".json"), result.to_json())
    for each in result.heads:
        name = f"block {each.block}" + ("" if each.head is None else f" head {each.head}")
        frame, row, column, share = each.places[0]
        print(
            f"{name}: start {100 * each.start:.0f} %, own frame {100 * each.frames[position[0]]:.0f} %, most at frame "
            f"{frame} row {row} column {column} ({100 * share:.1f} %)"
        )
    print(f"wrote {args.output} and {place}")
    shown = ["--input", args.input, "--output", beside(args.output, "surprise.png")]
    say_next("visualize", "surprise", "--model", args.model, *shown)


def place_of(args: AttentionArgs, grid: tuple[int, int], resolution: int, frames: int) -> tuple[int, int, int]:
    """(frame, row, column) of the chosen token. Raises ValueError for a place outside of the clip."""
    frame = frames - 1 if args.frame is None else args.frame
    require(0 <= frame < frames, f"--frame is {frame}, but the clip has the frames 0 to {frames - 1}.")
    if args.point:
        x, y = args.point
        require(
            0 <= x < resolution and 0 <= y < resolution,
            f"--point is {x} {y}, but the frame has the pixels 0 to {resolution - 1} in both directions.",
        )
        return frame, y * grid[0] // resolution, x * grid[1] // resolution
    for name, number, count in (("row", args.row, grid[0]), ("column", args.column, grid[1])):
        require(0 <= number < count, f"--{name} is {number}, but a frame has the {name}s 0 to {count - 1}.")
    return frame, args.row, args.column


def summary(attention: torch.Tensor, block: int, head: int | None):
    """The numbers of one head, (T, h, w)."""
    import numpy as np

    from evaluation.visualize.results import HeadAttention

    values = attention.double().numpy()
    most = np.argsort(-values, axis=None)[:3]
    places = [[*map(int, np.unravel_index(at, values.shape)), float(values.flat[at])] for at in most]
    return HeadAttention(
        block=block,
        head=head,
        start=float(max(0.0, 1 - values.sum())),
        frames=values.sum((1, 2)).tolist(),
        places=places,
    )


def draw(
    args: AttentionArgs, frames: np.ndarray, maps: torch.Tensor, blocks: list[int], position: tuple[int, int, int]
):
    """A column per frame, a row per block or head; each row has its own scale, whose top is written at its left.

    frames: uint8 (T, R, R, 3). maps: (blocks, heads, T, h, w).
    """
    import numpy as np

    from evaluation.pictures import enlarge
    from evaluation.visualize.drawing import Row, overlay, ringed, sheet, spaced

    frame, row, column = position
    last = frame if maps[:, :, frame + 1 :].sum() == 0 else len(frames) - 1  # causal: no later frame is seen
    columns = spaced(last + 1, COLUMNS)
    grid = tuple(maps.shape[3:])
    big = enlarge(frames)
    chosen = [ringed(big[t], row, column, grid) if t == frame else big[t] for t in columns]
    rows = [Row("clip", chosen)]
    for block, heads in zip(blocks, maps.numpy(), strict=True):
        named = [(f"block {block}", heads.mean(0))]
        if args.heads == "all":
            named = [(f"block {block} head {head}", each) for head, each in enumerate(heads)]
        for name, values in named:
            top = float(values.max())
            label = f"{name}\nstart {100 * max(0, 1 - values.sum()):.0f} %\ntop {100 * top:.1f} %"
            tiles = [overlay(big[t], values[t], top) for t in columns]
            notes = [f"{100 * np.sum(values[t]):.1f} %" for t in columns]
            rows.append(Row(label, tiles, notes))
    what = "the position that predicts the token" if args.predicting else "the token"
    title = (
        f"{Path(args.model).name}: attention of {what} at frame {frame}, row {row}, column {column} (ringed)\n"
        "below each frame: its share of the attention; start: that of the start token"
    )
    return sheet(rows, [f"frame {t}" for t in columns], title, ("no attention", "top of the row"))
