"""Clips of fixed size from a video file or its bytes, decoded sequentially with PyAV and without seeking.

Seeking lands on different frames in different containers, so a file is streamed once and cut into all its windows that
do not overlap. Damage raises a ValueError; the windows completed before it are kept.
"""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from .image_processing_toto import CENTRE, resize_and_crop
from .sampling import Sampling

try:  # optional: remote code on the Hub cannot require it
    import av
except ImportError:
    av = None


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
        self.next_time: Fraction | None = None
        self.filled, self.is_done = 0, False

    def add(self, picture: np.ndarray, index: int) -> np.ndarray | None:
        """Add a frame to the window; returns the window (T, R, R, 3) once it is complete, else None."""
        if self.filled == 0:
            self.frames, self.start = np.empty(self.shape, np.uint8), index
            if self.generator is not None:
                self.position = tuple(self.generator.random(2))
        self.frames[self.filled] = resize_and_crop(picture, self.shape[1], self.position)
        self.filled = (self.filled + 1) % self.shape[0]
        self.is_done = self.is_single and self.filled == 0
        return self.frames if self.filled == 0 else None


def frames_needed(num_frames: int, stride: int) -> int:
    """Number of source frames that a clip spans: 61 for 16 frames at stride 4."""
    return (num_frames - 1) * stride + 1


def _views(sampling: Sampling, span: int, source: str, total: int) -> list[_View]:
    """One centred view, or `crops` random ones: view 0 starts at frame 0, the others where a window still fits.

    span: source frames from one frame of a clip to the next. total: source frames.
    """
    if sampling.crops == 1:
        return [_View(sampling, 0)]
    digest = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big")
    slack = max(0, min(total - frames_needed(sampling.num_frames, span), sampling.num_frames * span - 1))
    views = []
    for k in range(sampling.crops):
        generator = np.random.default_rng([sampling.seed, digest, k])
        views.append(_View(sampling, int(generator.integers(slack + 1)) if k else 0, generator))
    return views


def _open(file: str | Path | bytes):
    """The container and its first video stream.

    Raises:
        ValueError: PyAV is missing, or the file is not a video. FileNotFoundError: there is no such file.
    """
    if av is None:
        raise ValueError("reading videos requires PyAV; pip install av.")
    unreadable = "the file cannot be opened as a video: it is corrupt, truncated or not a video."
    try:
        container = av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no video file {file}.") from error
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(unreadable) from error
    if not container.streams.video:
        only_audio = bool(container.streams.audio)
        container.close()
        raise ValueError("the file holds only audio, no video stream." if only_audio else unreadable)
    return container, container.streams.video[0]


def _decode(container, stream) -> Iterator:
    """Frames in display order; damage anywhere raises a ValueError."""
    stream.thread_type = "AUTO"
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError(f"the video is truncated or corrupt after frame {count}.")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise ValueError(f"the video is truncated or corrupt after frame {count}.")
                yield frame
                count += 1
    except av.error.FFmpegError as error:
        raise ValueError(f"the video is truncated or corrupt after frame {count}.") from error


def read_windows(
    file: str | Path | bytes, sampling: Sampling | None = None, *, source: str | None = None
) -> Iterator[Clip]:
    """All non-overlapping windows of a video in one pass or, with `sampling.views`, evenly spaced ones for evaluation.

    Args:
        file: a path, or the bytes of a file.
        sampling: which frames and pixels; random crops are determined by its seed and `source`. If the header announces
            more frames than there are, the last window of `views` is lost.
        source: name recorded in the clips; default: the path.
    Yields:
        Clip, in order of completion.
    Raises:
        ValueError: no video stream, damage (after yielding the windows before it), or too few frames for a window.
        FileNotFoundError: there is no such file.
    """
    sampling = sampling or Sampling()
    num_frames, stride, fps = sampling.num_frames, sampling.stride, sampling.fps
    source = source if source is not None else ("bytes" if isinstance(file, bytes) else str(file))
    container, stream = _open(file)
    with container:
        rate = stream.average_rate or stream.guessed_rate
        step = 1 / Fraction(fps).limit_denominator(100_000) if fps else None
        half = Fraction(1, 2) / rate if rate else Fraction(0)  # to take the nearest frame, not the next one
        span = stride if step is None else max(1, round(float(step * (rate or 1))))
        needed = frames_needed(num_frames, span)
        if step is not None and rate:  # the frame nearest to the last of the times
            needed = math.ceil((num_frames - 1) * step * rate - Fraction(1, 2)) + 1
        if sampling.views is None:
            looks = _views(sampling, span, source, stream.frames)
        else:
            play = max(0, (stream.frames or _count(file)) - needed)
            looks = [
                _View(sampling, round(time * play), position=position, is_single=True)
                for time, position in view_positions(*sampling.views)
            ]
        effective = float(fps) if fps else float(rate or 0) / stride
        converter = av.video.reformatter.VideoReformatter()  # shared: its setup costs as much as a frame
        index, windows = -1, 0
        for index, frame in enumerate(_decode(container, stream)):
            picture = None
            for view in looks:
                if index < view.offset or view.is_done:
                    continue
                if step is None:
                    copies = int((index - view.offset) % stride == 0)
                else:
                    time = frame.pts * frame.time_base if frame.pts is not None else Fraction(index) / (rate or 1)
                    view.next_time = time if view.next_time is None else view.next_time
                    copies = max(0, (time + half - view.next_time) // step + 1)
                    view.next_time += copies * step
                for _ in range(copies):  # more than one if the requested rate exceeds that of the video
                    if view.is_done:
                        break
                    if picture is None:
                        picture = _upright(frame, converter)
                    full = view.add(picture, index)
                    if full is not None:
                        windows += 1
                        yield Clip(full, source, view.start, effective)
    if index < 0:
        raise ValueError("no frame of the video could be decoded.")
    if stream.frames and index + 1 < 0.9 * stream.frames:  # edit lists may hide a few frames, but not a tenth
        raise ValueError(
            f"the video is truncated: its header announces {stream.frames} frames, but it has {index + 1}."
        )
    if windows == 0:
        rule = f"at {fps:g} fps" if fps else f"at stride {stride}"
        raise ValueError(
            f"the video is too short: it has {index + 1} frames, and a clip of {num_frames} frames {rule} "
            f"needs {needed}."
        )


def _count(file: str | Path | bytes) -> int:
    """Number of frames of a file whose header does not state it (Matroska, WebM), counted as packets."""
    container, stream = _open(file)
    with container:
        return sum(packet.size > 0 for packet in container.demux(stream))


def _upright(frame, converter) -> np.ndarray:
    """The frame as (H, W, 3) uint8 RGB, rotated by the file's display matrix (phones record sideways)."""
    picture = converter.reformat(frame, format="rgb24").to_ndarray()
    turns = round(frame.rotation / 90) % 4  # degrees counter-clockwise
    return np.rot90(picture, turns) if turns else picture


def read_clip(path: str | Path, sampling: Sampling | None = None) -> Clip:
    """The first clip of a video; arguments as `read_windows`.

    Raises:
        ValueError, FileNotFoundError: as `read_windows`; the message names the file.
    """
    try:
        return next(read_windows(path, sampling))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
