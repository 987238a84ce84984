"""What the pictures are made of: a model, and an image, a clip or a data set as frames of its size."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenization.sampling import Sampling
from training.flags import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evaluation.visualize.args import OneInputArgs
    from tokenization.sampling import TimeStepArgs
    from tokenization.video import Clip


def load(path: str):
    """(model, processor) of a Toto on the default device.

    Raises:
        FileNotFoundError: a folder without a model. ValueError: a model that is not a Toto.
    """
    from evaluation.backbones.contract import default_device
    from training.load import load_run

    model, processor = load_run(path)
    require(
        model.config.model_type == "toto", f"{path} is a {type(model).__name__}, not a Toto; name a Toto with --model."
    )
    device = default_device()
    return model.to(device), processor.to(device)


def read_one(args: OneInputArgs, resolution: int, num_frames: int, context: int | None = None) -> tuple[Clip, bool]:
    """(the clip or image of --input, whether it is an image).

    Args:
        resolution: side of its frames. num_frames: of a clip where --num_frames is not given.
        context: most frames that the model can read; None for no limit.
    Raises:
        ValueError: more frames than the context, a video that is too short, or an index that the data do not have.
        FileNotFoundError: there is no such file.
    """
    frames = args.num_frames or num_frames
    require(
        context is None or frames <= context,
        f"--num_frames is {frames}, but the context of the model has only {context} frames; give fewer.",
    )
    return read_input(args.input, resolution, frames, args, args.split, args.index)


def read_input(
    name: str, resolution: int, num_frames: int, time: TimeStepArgs, split: str | None = None, index: int = 0
) -> tuple[Clip, bool]:
    """(clip, whether it is an image) of an image or video file, a toyworld clip, or a data set's `index`-th item.

    Raises:
        ValueError, OSError: it cannot be read, or is too short.
    """
    from evaluation.generate import read_video
    from tokenization.image_processing_toto import resize_and_crop
    from tokenization.sources.kinds import is_media, kind_of
    from tokenization.video import Clip

    if name.split(":")[0] == "toyworld":
        try:
            return read_video(name, num_frames, 0, time.stride, time.fps, resolution), False
        except ValueError as error:  # which names the flag of toto generate
            raise ValueError(str(error).replace("--video", "--input")) from error
    path = Path(name)
    if path.is_file() and is_media(name):
        if kind_of(path) == "image":
            return Clip(resize_and_crop(path, resolution)[None], name), True
        return read_video(name, num_frames, 0, time.stride, time.fps, resolution, time.resize), False
    if is_media(name) and not path.exists():
        raise FileNotFoundError(f"There is no file {name}; check --input.")
    sampling = sampling_of(time, name, resolution, num_frames)
    source, clips = clips_of(name, split, sampling, index + 1)
    clip = next(islice(clips, index, None), None)
    require(clip is not None, f"{name} has no readable item {index}; choose a lower --index.")
    return clip, source.kind == "image"


def sampling_of(time: TimeStepArgs, dataset: str, resolution: int, num_frames: int, windows: int = 1) -> Sampling:
    """How a data set is read: `windows` clips of each video, spread evenly; toyworld one clip after another."""
    views = None if dataset.split(":")[0] == "toyworld" else (windows, 1)
    return Sampling(num_frames, time.stride, time.fps, resolution, views=views, resize=time.resize)


def clips_of(
    dataset: str, split: str | None, sampling: Sampling, limit: int, shuffle_seed: int | None = None
) -> tuple[object, Iterator[Clip]]:
    """(source, its clips) of a data set, at most `limit`; random ones if there is a seed, see `open_source`.

    split: None takes the only one, or test of toyworld.
    """
    from tokenization.sources.open import open_source

    split = split or ("test" if dataset.split(":")[0] == "toyworld" else None)
    source = open_source(dataset, split, sampling, limit=limit, shuffle_seed=shuffle_seed)
    return source, iter(source)


def codes_of_frames(processor, frames: np.ndarray):
    """uint8 frames (T, R, R, 3) -> codes (1, T, h, w)."""
    return processor.encode_frames(np.array(frames))[None]


def row_of(codes, image: bool):
    """Codes (1, T, h, w) -> ids (1, 1 + T * h * w), with the start token of images (T = 1) or of videos."""
    from tokenization.sequences import image_rows, video_rows

    return image_rows(codes[:, 0], end=False) if image else video_rows(codes, end=False)
