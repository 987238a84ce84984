"""How clips are sampled from media: which frames in time, and which of their pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

RESIZE = ("pil", "decoder")
# What decodes videos, see `torchcodec_playback`; torchcodec-cuda is NVDEC.
DECODERS = ("pyav", "torchcodec", "torchcodec-cuda")


@dataclass(frozen=True)
class Sampling:
    """Frames and pixels of the clips that a source or a video gives.

    Fields:
        num_frames: frames T of a clip (paper: 16); an image is a clip of one frame.
        stride: take every stride-th frame (paper: 4, for videos of 24 to 30 fps); ignored if `fps` is given.
        fps: resample to this rate by timestamps, to the frame on show at each time; 7.5 gives the paper's time step for
            any video.
        resolution: side R of the square frames in pixels: shorter side to R, then an R x R crop (paper Sec. 3.4).
        crops: 1 takes the centre; K > 1 takes K random crops (and temporal offsets) of each item.
        views: (windows, crops) instead, evenly spaced, as evaluations average them; see `video.view_positions`.
        seed: of the random crops, and of the embedded world.
        detail: reduce frames to this many pixels a side and enlarge them again, see
            `image_processing_toto.limit_detail`; a control.
        resize: "pil" resizes frames of videos at once and in full; "decoder" lets FFmpeg reduce large ones to three
            times `resolution` before, see `playback.Playback.picture`. Images are always resized at once.
    Raises:
        ValueError: a count below 1, a rate of 0 or less, an unknown `resize`, or views together with random crops.
    """

    num_frames: int = 16
    stride: int = 4
    fps: float | None = None
    resolution: int = 64
    crops: int = 1
    views: tuple[int, int] | None = None
    seed: int = 0
    detail: int | None = None
    resize: str = "pil"

    def __post_init__(self):
        for name in ("num_frames", "stride", "resolution", "crops", "detail"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps is {self.fps:g}; it must be above 0.")
        if self.resize not in RESIZE:
            raise ValueError(f"resize is {self.resize!r}; it must be pil or decoder.")
        if self.views is not None and self.crops != 1:
            raise ValueError("views cannot be combined with random crops; omit crops.")


@dataclass(frozen=True)
class TimeStepArgs:
    """The flags that set the time between the frames of a clip, and how those of videos are resized."""

    stride: int = field(
        default=Sampling.stride, metadata={"help": "every n-th frame of a video (paper: 4, for 24 to 30 fps media)"}
    )
    fps: float | None = field(
        default=None,
        metadata={
            "help": "frames per second to sample, in place of the stride: the frame on show at each time, repeated "
            "where it is held (paper's time step: 7.5)"
        },
    )
    resize: str = field(
        default=Sampling.resize,
        metadata={
            "help": "pil, or decoder, which reduces large frames of videos faster and changes one or two codes in a "
            "hundred (docs/datasets.md)"
        },
    )

    def __post_init__(self):
        if self.stride < 1:
            raise ValueError(f"--stride is {self.stride}; it must be at least 1.")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"--fps is {self.fps:g}; it must be above 0.")
        if self.resize not in RESIZE:
            raise ValueError(f"--resize is {self.resize}; it must be pil or decoder.")
