"""What a visitor opens: an uploaded clip or picture, or a clip of the embedded world, as a model reads it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.app.models import Loaded
from evaluation.generate import read_video
from tokenization.sampling import Sampling
from tokenization.sequences import image_rows, video_rows
from tokenization.sources.kinds import PICTURES, VIDEOS, kind_of, suffix_of
from tokenization.sources.pictures import image_crops
from tokenization.video import read_windows
from training.flags import require

WORLDS = ("toyworld:motion", "toyworld:simple", "toyworld:cluttered")
MAX_INDEX = 99_999
SUFFIXES = sorted(PICTURES | VIDEOS)
# Texts that FFmpeg reads as lists of other files or addresses, which an upload must not name.
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"m=video", b"[playlist]")


@dataclass(frozen=True, eq=False)
class Opened:
    """A clip, through the tokenizer of one model.

    Fields:
        model: its name. name: of the clip, for the page. is_image: read as a picture, not as a clip of one frame.
        frames: uint8 (T, R, R, 3). codes: int64 (T, h, w). reconstructed: uint8 (T, R, R, 3), from the codes.
    """

    model: str
    name: str
    is_image: bool
    frames: np.ndarray
    codes: np.ndarray
    reconstructed: np.ndarray

    @property
    def ids(self):
        """The row (1, 1 + T h w) that the model reads, without an end token."""
        return image_rows(self.codes, end=False) if self.is_image else video_rows(self.codes[None], end=False)


def open_clip(loaded: Loaded, upload: str | None, world: str, index: int, num_frames: int, stride: int) -> Opened:
    """Read an upload or, without one, a test clip of the embedded world.

    Args:
        upload: file of a picture or a video, of which every stride-th frame is taken. world: one of WORLDS.
        num_frames: T; a shorter video gives fewer.
    Raises:
        ValueError: a file that cannot be read, or a number out of range; the sentence names no folder.
    """
    num_frames, stride, index = int(num_frames), int(stride), int(index or 0)
    require(
        1 <= num_frames <= loaded.context,
        f"{loaded.name} reads 1 to {loaded.context} frames, not {num_frames}; choose fewer.",
    )
    require(1 <= stride <= 64, f"Every {stride}th frame cannot be taken; choose 1 to 64.")
    if upload is None:
        require(world in WORLDS, f"There is no world '{world}'; choose one of {', '.join(WORLDS)}.")
        require(0 <= index <= MAX_INDEX, f"There is no clip {index}; choose 0 to {MAX_INDEX:,}.")
        frames = read_video(f"{world}:{index}", num_frames, 0, 1, None, loaded.processor.resolution).frames
        return _through_tokenizer(loaded, f"{world}:{index}", frames, is_image=False)
    file = Path(upload)
    is_image, frames = read_upload(file, loaded.processor.resolution, num_frames, stride)
    return _through_tokenizer(loaded, file.name, frames, is_image)


def read_upload(file: Path, resolution: int, num_frames: int, stride: int) -> tuple[bool, np.ndarray]:
    """(whether it is a picture, frames uint8 (T, R, R, 3)) of an uploaded file; T is at most num_frames.

    Raises:
        ValueError: neither a picture nor a video, or damaged.
    """
    require(
        suffix_of(file.name) in SUFFIXES,
        f"{file.name} is neither a picture nor a video by its ending; upload for example a .png, .jpg, .mp4 or .webm.",
    )
    content = file.read_bytes()
    require(bool(content), f"{file.name} is empty; upload another file.")
    # From bytes, so that neither a name nor a list inside the file makes FFmpeg open another file.
    if any(text in content[:512] for text in PLAYLISTS):
        raise ValueError(f"{file.name} is a list of other files, not a video; upload the video itself.")
    try:
        if kind_of(file) == "image":
            return True, next(image_crops(content, file.name, Sampling(1, resolution=resolution))).frames
        single = read_windows(content, Sampling(1, stride, resolution=resolution), source=file.name)
        frames = [clip.frames[0].copy() for clip in itertools.islice(single, num_frames)]
    except (ValueError, OSError) as error:
        raise ValueError(f"{file.name}: {error}") from error
    return False, np.stack(frames)


def _through_tokenizer(loaded: Loaded, name: str, frames: np.ndarray, is_image: bool) -> Opened:
    frames = np.array(frames)  # a picture's pixels cannot be written to, which torch warns of
    codes = loaded.processor.encode_frames(frames)
    reconstructed = loaded.processor.decode(video_rows(codes[None], end=False))[0]
    return Opened(loaded.name, name, is_image, frames, codes.numpy(), reconstructed)
