"""The published settings of label propagation, each with every detail in which they differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """How labels travel from frames before to a frame. docs/tracking.md has the sources.

    Fields:
        context_frames: previous frames that a frame reads, besides the first one, which it always reads.
        starts_with_copies: the frames before the first one are copies of it; if not, there are fewer at the start.
        radius: largest distance in cells from a cell to one that it may read.
        window: "disk" (Euclidean distance) or "square" (the larger of both coordinates).
        includes_radius: whether a cell at exactly `radius` is read.
        restricts_first: whether the window also holds for the first frame.
        top_k: most similar cells that count, of all frames together.
        keeps_ties: whether cells as similar as the last of these count too.
        temperature: of the softmax over cosine similarities.
        first_labels: how the first mask becomes a grid, "nearest" (its pixel at the centre of a cell) or "linear"
            (one-hot at the size of the model's frames, then linearly between four pixels).
        normalises_labels: whether the labels of a cell are divided by their sum.
        decode: from the grid to the model's frames, "bilinear" or "nearest".
        min_max: whether each object's map is scaled to 0..1 over the frame before the largest label is taken.
        resample: filter that stretches frames, "bilinear" or "bicubic".
    """

    name: str
    context_frames: int
    starts_with_copies: bool
    radius: float
    window: str
    includes_radius: bool
    restricts_first: bool
    top_k: int
    keeps_ties: bool
    temperature: float
    first_labels: str
    normalises_labels: bool
    decode: str
    min_max: bool
    resample: str


STC = Setting(
    name="stc",
    context_frames=20,
    starts_with_copies=True,
    radius=12,
    window="disk",
    includes_radius=False,
    restricts_first=False,
    top_k=10,
    keeps_ties=False,
    temperature=0.05,
    first_labels="linear",
    normalises_labels=False,
    decode="bilinear",
    min_max=False,
    resample="bilinear",
)
DINO = Setting(
    name="dino",
    context_frames=7,
    starts_with_copies=False,
    radius=12,
    window="square",
    includes_radius=True,
    restricts_first=True,
    top_k=5,
    keeps_ties=True,
    temperature=0.1,
    first_labels="nearest",
    normalises_labels=False,
    decode="bilinear",
    min_max=True,
    resample="bilinear",
)
DINOV3 = Setting(
    name="dinov3",
    context_frames=7,
    starts_with_copies=False,
    radius=12,
    window="disk",
    includes_radius=True,
    restricts_first=True,
    top_k=5,
    keeps_ties=True,
    temperature=0.2,
    first_labels="nearest",
    normalises_labels=True,
    decode="nearest",
    min_max=True,
    resample="bicubic",
)
SETTINGS = {setting.name: setting for setting in (STC, DINO, DINOV3)}
