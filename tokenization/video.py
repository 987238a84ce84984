"""Clips of fixed size from a video file or its bytes, decoded sequentially with PyAV and without seeking.

Seeking lands on different frames in different containers, so a file is streamed once and cut into all its windows that
do not overlap. Damage raises a ValueError; the windows completed before it are kept.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from .image_processing_toto import CENTRE
from .playback import Shown, crop_of, extent, in_ticks
from .sampling import Sampling
from .torchcodec_playback import playback_of

# Seconds. Matroska and many files that were converted from it have times rounded to milliseconds, at the start of a
# window and at its other frames: a frame so little after a time counts as on show at it.
ROUNDING = Fraction(1, 1000)


@dataclass
class Clip:
    """A window of a video, or an image (T = 1).

    frames: uint8 (T, R, R, 3) RGB. source: its file or row. start: index of its first frame in the source.
    fps: frames per second of `frames`, after the stride; 0.0 for an image. labels: column name -> class number or text.
    """

    frames: np.ndarray
    source: str
    start: int = 0
    fps: float = 0.0
    labels: dict[str, int | str] = field(default_factory=dict)


def view_positions(views: int, crops: int) -> list[tuple[float, tuple[float, float]]]:
    """(time, (y, x)) of each view as fractions 0..1: evenly spaced windows times evenly spaced crops.

    Time 0 is the first window that fits and 1 the last; a single window is the middle one. Crops are spaced along the
    longer side, the only one along which `resize_and_crop` can move; a single crop is the centre. So 5 x 3 gives 15
    views.

    Raises:
        ValueError: `views` or `crops` is below 1.
    """
    if views < 1 or crops < 1:
        raise ValueError(f"views and crops must be 1 or more, not {views} and {crops}.")
    return [(time, (place, place)) for time in _spaced(views) for place in _spaced(crops)]


def _spaced(count: int) -> list[float]:
    return [0.5] if count == 1 else [k / (count - 1) for k in range(count)]


class _View:
    """Windows of a file from one temporal offset, with one crop for all or one per window drawn by `generator`.

    is_single: stop after one window.
    """

    def __init__(
        self,
        sampling: Sampling,
        offset: int,
        generator: np.random.Generator | None = None,
        position: tuple[float, float] = CENTRE,
        is_single: bool = False,
    ):
        self.shape = (sampling.num_frames, sampling.resolution, sampling.resolution, 3)
        self.offset, self.generator, self.position, self.is_single = offset, generator, position, is_single
        self.next_time: int | Fraction | None = None  # ticks
        self.filled, self.is_done = 0, False

    def copies(self, shown: Shown, stride: int, step: int | None, rounding: int) -> int:
        """How often the view takes a frame: with a step in ticks, once for every time at which it is on show.

        rounding: ROUNDING in ticks.
        """
        if self.is_done or shown.index < self.offset:
            return 0
        if step is None:
            return int((shown.index - self.offset) % stride == 0)
        if self.next_time is None:
            self.next_time = shown.time
        copies = max(0, -((self.next_time + rounding - shown.until) // step))  # rounded up
        self.next_time += copies * step
        return copies

    def add(self, picture: tuple[np.ndarray, Fraction], index: int) -> np.ndarray | None:
        """Add a frame to the window; returns the window (T, R, R, 3) once it is complete, else None."""
        if self.filled == 0:
            self.frames, self.start = np.empty(self.shape, np.uint8), index
            if self.generator is not None:
                self.position = tuple(self.generator.random(2))
        self.frames[self.filled] = crop_of(picture, self.shape[1], self.position)
        self.filled = (self.filled + 1) % self.shape[0]
        self.is_done = self.is_single and self.filled == 0
        return self.frames if self.filled == 0 else None


def frames_needed(num_frames: int, stride: int) -> int:
    """Number of source frames that a clip spans: 61 for 16 frames at stride 4."""
    return (num_frames - 1) * stride + 1


def _looks(
    file: str | Path | bytes, sampling: Sampling, source: str, span: int, needed: int, step: Fraction | None
) -> list[_View]:
    """One centred view, `crops` random ones of which the first starts at frame 0, or those of `views`.

    span: source frames from one frame of a clip to the next. needed: source frames of a clip. step: seconds from one
    frame of a clip to the next, if it is sampled by time.
    """
    if sampling.views is None and sampling.crops == 1:
        return [_View(sampling, 0)]
    film = extent(file)
    play = max(0, film.count - needed)
    if sampling.views is not None:
        looks = []
        for time, position in view_positions(*sampling.views):
            look = _View(sampling, round(time * play), position=position, is_single=True)
            if step is not None and film.first is not None:  # evenly over the time on show, where frames may be held
                slack = max(0, film.last - film.first - (sampling.num_frames - 1) * step)
                look.offset, look.next_time = 0, film.first + Fraction(time).limit_denominator(100_000) * slack
            looks.append(look)
        return looks
    digest = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big")
    slack = min(play, sampling.num_frames * span - 1)
    looks = []
    for k in range(sampling.crops):
        generator = np.random.default_rng([sampling.seed, digest, k])
        looks.append(_View(sampling, int(generator.integers(slack + 1)) if k else 0, generator))
    return looks


def read_windows(
    file: str | Path | bytes, sampling: Sampling | None = None, *, source: str | None = None, decoder: str = "pyav"
) -> Iterator[Clip]:
    """All non-overlapping windows of a video in one pass or, with `sampling.views`, evenly spaced ones for evaluation.

    Args:
        file: a path, or the bytes of a file.
        sampling: which frames and pixels; random crops are determined by its seed and `source`. With `fps`, a clip has
            the frame on show at each of its times, so a held frame repeats. `views` are placed over what is shown, as
            the packets of the file tell; where some of them cannot be decoded, the last window may be lost.
        source: name recorded in the clips; default: the path.
        decoder: "pyav", or "torchcodec" or "torchcodec-cuda" (NVDEC), see `torchcodec_playback`.
    Yields:
        Clip, in order of completion.
    Raises:
        ValueError: no video stream, damage (after yielding the windows before it), or too few frames for a window.
        FileNotFoundError: there is no such file.
    """
    sampling = sampling or Sampling()
    num_frames, stride, fps = sampling.num_frames, sampling.stride, sampling.fps
    source = source if source is not None else ("bytes" if isinstance(file, bytes) else str(file))
    with playback_of(file, decoder) as playback:
        rate = playback.rate
        step = 1 / Fraction(fps).limit_denominator(100_000) if fps else None
        span = stride if step is None else max(1, round(step * (rate or 1)))
        needed = frames_needed(num_frames, span)
        if step is not None and rate:  # the frame on show at the last of the times
            needed = math.floor((num_frames - 1) * step * rate) + 1
        looks = _looks(file, sampling, source, span, needed, step)
        starts = [look.next_time for look in looks if look.next_time is not None]
        ticks = playback.ticks(ROUNDING, *starts, *([] if step is None else [step]))
        for look in looks:
            look.next_time = None if look.next_time is None else in_ticks(look.next_time, ticks)
        pace = (stride, None if step is None else in_ticks(step, ticks), in_ticks(ROUNDING, ticks))
        side = sampling.resolution if sampling.resize == "decoder" else None
        effective = float(fps) if fps else float(rate or 0) / stride
        count, windows = 0, 0
        for shown in playback.frames(ticks):
            count, picture = shown.index + 1, None
            for view in looks:
                for _ in range(view.copies(shown, *pace)):
                    if picture is None:
                        picture = playback.picture(shown.frame, side)
                    full = view.add(picture, shown.index)
                    if full is not None:
                        windows += 1
                        yield Clip(full, source, view.start, effective)
                    if view.is_done:
                        break
    if count == 0:
        raise ValueError("no frame of the video could be decoded.")
    if windows == 0:
        rule = f"at {fps:g} fps" if fps else f"at stride {stride}"
        raise ValueError(
            f"the video is too short: it has {count} frames, and a clip of {num_frames} frames {rule} needs {needed}."
        )


def read_clip(path: str | Path, sampling: Sampling | None = None) -> Clip:
    """The first clip of a video; arguments as `read_windows`.

    Raises:
        ValueError, FileNotFoundError: as `read_windows`; the message names the file.
    """
    try:
        return next(read_windows(path, sampling))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
