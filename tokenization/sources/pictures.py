"""Clips from pictures: crops of one image, and windows of a list of frames."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokenization.image_processing_toto import CENTRE, resize_and_crop
from tokenization.sampling import Sampling
from tokenization.video import Clip, view_positions


def _digest(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)


def _cropped(content: bytes | str, resolution: int, positions: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
    """Crops (R, R, 3) of an image; raises ValueError if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            for position in positions:
                yield resize_and_crop(image, resolution, position)
    except UnidentifiedImageError as error:  # its own message holds a memory address, which differs between runs
        raise ValueError("the image cannot be read: it is corrupt or not an image.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be read: {error}") from error


def image_crops(content: bytes | str, name: str, sampling: Sampling) -> Iterator[Clip]:
    """The centre crop of an image, or `crops` random ones that depend on seed and name, or those of its views."""
    generator = np.random.default_rng([sampling.seed, _digest(name)])
    if sampling.views is not None:
        positions = [position for _, position in view_positions(1, sampling.views[1])]
    elif sampling.crops == 1:
        positions = [CENTRE]
    else:
        positions = [tuple(generator.random(2)) for _ in range(sampling.crops)]
    for picture in _cropped(content, sampling.resolution, positions):
        yield Clip(picture[None], name)


def frame_windows(frames: Sequence[bytes | str], name: str, sampling: Sampling, rate: float | None) -> Iterator[Clip]:
    """The windows of a clip that is stored as a list of images; as `video.read_windows` cuts them from a video.

    Args:
        frames: files or paths of the images, in time order. name: of the clip.
        rate: frames per second; None if it is unknown.
    Yields:
        Clip, in order of the last frame; only the frames of windows are decoded.
    Raises:
        ValueError: too few frames, an unreadable frame, or a sampling by time where the rate is unknown.
    """
    if sampling.fps is not None and not rate:
        raise ValueError("the frames have no rate; sample them with stride, or add a column fps with their rate.")
    step = Fraction(sampling.stride)
    if sampling.fps is not None:  # the frame on show at a time is the last one before it
        step = Fraction(rate).limit_denominator(100_000) / Fraction(sampling.fps).limit_denominator(100_000)
    length = sampling.num_frames
    needed = int((length - 1) * step) + 1
    if len(frames) < needed:
        rule = f"at {sampling.fps:g} fps" if sampling.fps else f"at stride {sampling.stride}"
        raise ValueError(
            f"the clip is too short: it has {len(frames)} frames, and a clip of {length} frames {rule} needs {needed}."
        )
    windows = sorted(_windows(sampling, len(frames), needed, step, name), key=lambda window: window[0][-1])
    fps = sampling.fps or (rate or 0.0) / sampling.stride
    for places, position in windows:
        pictures = [next(_cropped(frames[place], sampling.resolution, [position])) for place in places]
        yield Clip(np.stack(pictures), name, places[0], float(fps))


def _windows(sampling: Sampling, total: int, needed: int, step: Fraction, name: str) -> Iterator[tuple]:
    """(frame numbers of a window, position of its crop)."""
    length = sampling.num_frames
    span = [int(k * step) for k in range(length)]
    if sampling.views is not None:
        for time, position in view_positions(*sampling.views):
            start = round(time * (total - needed))
            yield [start + place for place in span], position
        return
    slack = max(0, min(total - needed, int(length * step) - 1))
    for view in range(sampling.crops):
        generator = np.random.default_rng([sampling.seed, _digest(name), view])
        offset = int(generator.integers(slack + 1)) if view else 0
        for window in range(total):
            places = [offset + int((window * length + k) * step) for k in range(length)]
            if places[-1] >= total:
                break
            yield places, CENTRE if sampling.crops == 1 else tuple(generator.random(2))
