"""`toto visualize pca`: principal components of patch features as colours, layer by layer, next to the untrained twin.

The paper (App. A.12) fits them for each layer to the features of 100 random images and shows the first three as
colours. The alignment of layers, the fixed scale, the twin and the removal of the position mean are ours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.visualize.args import DATASETS, SPLIT, check_output, require_model
from tokenization.sampling import TimeStepArgs
from tokenization.terminal.next_command import beside, say_next
from training.flags import option, parse, refuse_idle, require, require_not_negative, require_positive, typed_flags

if TYPE_CHECKING:
    from evaluation.backbones.contract import Backbone
    from evaluation.visualize.components import Components

DESCRIPTION = (
    "Show what layers of any backbone of toto probe separate: the first three principal components of patch features, "
    "fitted to some images and shown on others as red, green and blue. Components are aligned from layer to layer, so "
    "that colours keep their meaning, and all pictures share one scale. docs/pictures.md explains how to read them."
)
COLUMNS = 8  # most frames of a clip that are shown
BATCH = 8  # images in a forward pass
TILE = 128  # pixels of a picture's side


@dataclass(frozen=True)
class PcaArgs(TimeStepArgs):
    model: str | None = option(None, "Hub id, Hugging Face folder or run folder: a Toto, ViT-MAE, DINO, V-JEPA 2, ...")
    dataset: str | None = option(None, f"images to fit the components to: {DATASETS}; of a video, one frame is taken")
    split: str | None = option(None, SPLIT)
    fit_images: int = option(100, "images to fit to (paper: 100 random ones)")
    input: list[str] = option(
        [], "image files, video files or toyworld:VARIANT:INDEX to show (default: other images of --dataset)"
    )
    show: int = option(4, "images of --dataset to show, other ones than those of the fit")
    layers: list[int] = option([], "layer numbers, 0 for the embeddings (default: 1, 3, 5, ..., as the paper)")
    remove_position_mean: bool = option(
        False, "subtract the mean feature of each place first, so that the components do not show where a patch is"
    )
    no_untrained: bool = option(False, "leave out the rows of the untrained twin")
    num_frames: int | None = option(None, "frames of each video of --input (default: those of the model)")
    resolution: int | None = option(None, "side of the square frames in pixels (default: that of the model)")
    seed: int = option(0, "of the choice of images and of the untrained twin")
    output: str | None = option(None, "picture to write (.png); a result (.json) is written next to it")

    def __post_init__(self):
        super().__post_init__()
        require_model(self.model)
        check_output(self.output, (".png",))
        require(self.dataset is not None, "--dataset DATA is missing; name the images that the components are fit to.")
        require_positive(self, "fit_images", "show", "num_frames", "resolution")
        require_not_negative(self, "seed")


@dataclass(frozen=True)
class Shown:
    """Frames of an image or a clip, uint8 (T, R, R, 3). image: whether a Toto reads them as an image, not as a clip."""

    name: str
    frames: np.ndarray
    image: bool


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((PcaArgs,), argv, "toto visualize pca", DESCRIPTION)
    if args.input:
        refuse_idle(argv, ("show",), "with --input, which is shown in place of images of --dataset")
    else:
        refuse_idle(argv, ("num_frames",), "without a video in --input")
    if "fps" in typed_flags(argv):
        refuse_idle(argv, ("stride",), "next to --fps")

    from evaluation.backbones import load_backbone
    from evaluation.results import command_line
    from evaluation.visualize.drawing import save
    from evaluation.visualize.results import LayerComponents, PcaResult
    from tokenization.files import write_json
    from training.engine.device import versions

    backbone = load_backbone(args.model, resolution=args.resolution)
    layers = args.layers or list(range(1, backbone.depth + 1, 2))
    backbone.check_layers(layers)
    fit, image, shown = read_images(args, backbone)
    trained = fit_layers(backbone, fit, image, layers, args.remove_position_mean)
    rows = {"trained": pictures_of(backbone, shown, trained)}
    twin = None
    if not args.no_untrained:
        untrained = backbone.untrained(args.seed)
        twin = fit_layers(untrained, fit, image, layers, args.remove_position_mean, trained)
        rows["untrained"] = pictures_of(untrained, shown, twin)
    picture = draw(args, shown, rows, trained, twin)
    result = PcaResult(
        command=command_line("visualize", ["pca", *argv]),
        model=args.model,
        dataset=args.dataset,
        fit_images=len(fit),
        shown=[each.name for each in shown],
        resolution=backbone.resolution,
        remove_position_mean=args.remove_position_mean,
        seeds={"images": args.seed, "untrained": args.seed},
        layers=[
            LayerComponents(layer=k, explained=each[0].explained, untrained=twin and twin[k][0].explained)
            for k, each in trained.items()
        ],
        versions=versions(),
    )
    save(picture, args.output)
    write_json(place := Path(args.output).with_suffix(".json"), result.to_json())
    for each in result.layers:
        print(f"layer {each.layer}: {percent(each.explained)} of the variance; untrained {percent(each.untrained)}")
    print(f"wrote {args.output} and {place}")
    data = [] if args.dataset.startswith("toyworld") else ["--dataset", args.dataset]  # which may have no labels
    say_next("probe", "--model", args.model, *data, "--output", beside(args.output, "probe.json"))


def read_images(args: PcaArgs, backbone: Backbone) -> tuple[np.ndarray, bool, list[Shown]]:
    """(images to fit to, uint8 (N, 1, R, R, 3); False if they are frames of videos; what is shown).

    Raises ValueError if there are too few.
    """
    from evaluation.visualize.inputs import clips_of, read_input, sampling_of

    more = 0 if args.input else args.show
    sampling = sampling_of(args, args.dataset, backbone.resolution, 1)
    source, clips = clips_of(args.dataset, args.split, sampling, args.fit_images + more, args.seed)
    found = list(clips)
    require(
        len(found) > more,
        f"{args.dataset} has {len(found)} readable images, and {more} of them are shown; give more, or lower --show.",
    )
    rest = found[len(found) - more :]
    fit = np.stack([clip.frames for clip in found[: len(found) - more]])
    is_image = source.kind == "image"
    if not args.input:
        return fit, is_image, [Shown(clip.source, clip.frames, is_image) for clip in rest]
    frames = args.num_frames or backbone.num_frames
    read = [(name, *read_input(name, backbone.resolution, frames, args)) for name in args.input]
    return fit, is_image, [Shown(name, clip.frames, image) for name, clip, image in read]


def features_of(backbone: Backbone, frames: np.ndarray, layers: list[int], image: bool) -> dict[int, np.ndarray]:
    """{layer: float32 (B, T', h, w, D)} of frames uint8 (B, T, R, R, 3); T' = 1 for T = 1.

    image: whether a Toto reads a frame as an image. Where a backbone reads it as a still clip, one step is kept.
    """
    import torch

    parts = []
    for start in range(0, len(frames), BATCH):
        batch = torch.tensor(frames[start : start + BATCH])
        grids = backbone.grids(backbone.prepare(batch, image=image), layers, lambda grid: grid.float().cpu().numpy())
        parts.append({k: grid[:, :1] if frames.shape[1] == 1 else grid for k, grid in grids.items()})
    return {k: np.concatenate([part[k] for part in parts]) for k in layers}


def fit_layers(
    backbone: Backbone,
    images: np.ndarray,
    image: bool,
    layers: list[int],
    remove_position_mean: bool,
    reference: dict | None = None,
) -> dict[int, tuple[Components, np.ndarray]]:
    """{layer: (its components, their scores (N, h, w, 3) on the images)}, each aligned with the layer before it.

    Args:
        images: uint8 (N, 1, R, R, 3). image: as in `features_of`.
        reference: of this function for another model: each layer is aligned with its own layer there.
    """
    from evaluation.visualize.components import aligned, fit_components

    features = features_of(backbone, images, layers, image)
    found: dict[int, tuple[Components, np.ndarray]] = {}
    before = None
    for k in layers:
        grid = features.pop(k)[:, 0]
        components = fit_components(grid, remove_position_mean)
        like = before if reference is None else reference[k][1]
        if like is not None:
            components = aligned(components, components.scores(grid), like)
        found[k] = components, (before := components.scores(grid))
    return found


def pictures_of(
    backbone: Backbone, shown: list[Shown], fitted: dict[int, tuple[Components, np.ndarray]]
) -> list[dict[int, np.ndarray]]:
    """For each of `shown` {layer: uint8 (T', h, w, 3)}."""
    from evaluation.visualize.components import pca_pictures

    found = []
    for each in shown:
        grids = features_of(backbone, each.frames[None], list(fitted), each.image)
        found.append({k: pca_pictures(grids[k][0], fitted[k][0]) for k in fitted})
    return found


def draw(args: PcaArgs, shown: list[Shown], rows: dict[str, list[dict]], trained: dict, twin: dict | None):
    """A column per layer; for every image, or frame of a clip, a row of the trained model above one of its twin."""
    from evaluation.visualize.drawing import Row, resized, sheet, spaced
    from tokenization.image_processing_toto import resize_and_crop

    heads = ["picture"]
    for k, (components, _) in trained.items():
        below = "" if twin is None else f"\nuntrained {100 * sum(twin[k][0].explained):.0f} %"
        heads.append(f"layer {k}: {100 * sum(components.explained):.0f} %{below}")
    lines = []
    for number, each in enumerate(shown):
        for who, pictures in rows.items():
            steps = len(next(iter(pictures[number].values())))
            for step in spaced(steps, COLUMNS):
                frame = each.frames[step * len(each.frames) // steps]
                label = who if steps == 1 else f"{who}\nframe {step * len(each.frames) // steps}"
                tile = resize_and_crop(frame, TILE) if len(frame) > TILE else resized(frame, TILE)
                tiles = [resized(picture[step], TILE) for picture in pictures[number].values()]
                lines.append(Row(label, [tile, *tiles]))
    what = ", without the position mean" if args.remove_position_mean else ""
    name = Path(args.model).name
    title = (
        f"{name}: three principal components of patch features{what}\n"
        "red, green and blue, one scale for all; share of the variance that the three explain"
    )
    return sheet(lines, heads, title)


def percent(shares: list[float] | None) -> str:
    return "-" if shares is None else " + ".join(f"{100 * share:.1f}" for share in shares) + " %"
