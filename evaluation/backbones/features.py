"""Features of a few clips, held in memory; `extraction.py` is for datasets, whose features go to files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from evaluation.backbones.contract import Backbone, Features
from evaluation.backbones.extraction import Job
from tokenization.image_processing_toto import resize_and_crop
from tokenization.sampling import Sampling
from tokenization.sources.kinds import kind_of
from tokenization.video import Clip, read_clip


def extract_features(
    backbone: Backbone,
    clips: np.ndarray | torch.Tensor | Iterable[Any],
    layers: Literal["all"] | Sequence[int] = "all",
    *,
    max_tokens: int | None = None,
    batch_size: int = 8,
) -> Features:
    """Features of images or clips from layers of a frozen backbone.

    Args:
        backbone: of `load_backbone`.
        clips: uint8 (N, T, H, W, 3), or an iterable of images or videos of any size, all with the same number of
            frames T: PIL images, image arrays (H, W, 3), video arrays (T, H, W, 3), paths of image or video files, or
            the clips of a `tokenization.open_source`. Frames are resized and cropped to the backbone's resolution.
            All frames of an array are read. Of a video file, every fourth frame is read from the beginning,
            `backbone.num_frames` in all. A clip of one frame is read as an image.
        layers: layer numbers: k is the residual stream after block k, 0 the embeddings; "all" takes 0 to
            `backbone.depth`.
        max_tokens: keep a grid of at most this many tokens per clip, which attention heads need; None keeps none.
        batch_size: clips per forward pass.
    Returns:
        `Features` with `layers`, `pooled` (L, N, D) float32, the mean token of each of L layers and N clips, and
        `tokens` (L, N, n, D) float16, n <= max_tokens, or None. Tokens are normalised without parameters (mean 0,
        variance 1) before they are averaged.
    Raises:
        ValueError: no clips, clips of different lengths, too many frames for the model, a layer that it does not have,
            or layers of different widths (Hiera's): extract those of one width at a time.
        OSError: a file that cannot be read.
    """
    numbers = list(range(backbone.depth + 1)) if layers == "all" else list(layers)
    job = Job(backbone, numbers, max_tokens)
    kept: list[dict] = []
    batch: list[np.ndarray] = []

    def run() -> None:
        frames = np.stack(batch)
        kept.append(job.run(backbone.prepare(frames, image=frames.shape[1] == 1)))
        batch.clear()

    length = None
    for number, clip in enumerate(_listed(clips)):
        batch.append(_frames(clip, backbone))
        length = length or len(batch[0])
        if len(batch[-1]) != length:
            raise ValueError(
                f"Clip {number} has {len(batch[-1])} frames and clip 0 has {length}; pass clips of one length."
            )
        if len(batch) == batch_size:
            run()
    if batch:
        run()
    if not kept:
        raise ValueError("There are no clips to extract features from; pass at least one.")
    widths = {k: kept[0][k][0].shape[1] for k in numbers}
    if len(set(widths.values())) > 1:
        groups = {width: [k for k in numbers if widths[k] == width] for width in widths.values()}
        listed = ", ".join(f"{members} ({width} wide)" for width, members in groups.items())
        raise ValueError(f"The layers have different widths; extract those of one width at a time: {listed}.")
    pooled = torch.stack([torch.cat([made[k][0] for made in kept]) for k in numbers])
    if max_tokens is None:
        return Features(numbers, pooled, None)
    return Features(numbers, pooled, torch.stack([torch.cat([made[k][1] for made in kept]) for k in numbers]))


def _listed(clips) -> Iterable:
    """The clips one by one.

    Raises:
        ValueError: a single image or video, or an array that may be a batch of images or one video.
    """
    if isinstance(clips, (str, Path, Image.Image, Clip)):
        raise ValueError("A single image or video was passed; pass a list of them.")
    if isinstance(clips, (np.ndarray, torch.Tensor)) and clips.ndim != 5:
        raise ValueError(
            f"An array of clips is (N, T, H, W, 3), not {tuple(clips.shape)}; for a batch of images pass list(images), "
            "for one video pass [video]."
        )
    return clips


def _frames(clip, backbone: Backbone) -> np.ndarray:
    """uint8 (T, R, R, 3) of an image, a video, a file of either, or a `Clip`, at the backbone's resolution."""
    side = backbone.resolution
    if isinstance(clip, (str, Path)):
        if kind_of(clip) == "video":
            return read_clip(clip, Sampling(backbone.num_frames, resolution=side)).frames
        with Image.open(clip) as image:
            return resize_and_crop(image, side)[None]
    frames = clip.frames if isinstance(clip, Clip) else clip
    is_video = isinstance(frames, (list, tuple)) or getattr(frames, "ndim", 3) == 4
    return np.stack([resize_and_crop(frame, side) for frame in (frames if is_video else [frames])])
