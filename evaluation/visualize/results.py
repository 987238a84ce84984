"""The results that `toto visualize` writes next to its pictures."""

from __future__ import annotations

from dataclasses import dataclass

from training.results import Record


@dataclass(frozen=True, kw_only=True)
class LayerComponents(Record):
    """layer: its number. explained: share of the variance that red, green and blue explain. untrained: the same of the
    untrained twin; None without one."""

    layer: int
    explained: list[float]
    untrained: list[float] | None


@dataclass(frozen=True, kw_only=True)
class PcaResult(Record):
    """fit_images: images or frames that the components were fitted to. shown: names of those in the picture."""

    command: str
    model: str
    dataset: str
    fit_images: int
    shown: list[str]
    resolution: int
    remove_position_mean: bool
    seeds: dict
    layers: list[LayerComponents]
    versions: dict


@dataclass(frozen=True, kw_only=True)
class HeadAttention(Record):
    """The attention of a head, or of a block's mean head.

    start: share of the start token. frames: share of each frame. places: the three tokens attended to most, each
    as [frame, row, column, share].
    """

    block: int
    head: int | None
    start: float
    frames: list[float]
    places: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class AttentionResult(Record):
    """position: [frame, row, column] of the token. predicting: of the position that predicts it."""

    command: str
    model: str
    input: str
    position: list[int]
    predicting: bool
    heads: list[HeadAttention]
    versions: dict


@dataclass(frozen=True, kw_only=True)
class SurpriseResult(Record):
    """nats: of every code, by frame, row and column. frames: mean of each frame. guess: nats of a guess among all
    codes."""

    command: str
    model: str
    input: str
    mean: float
    frames: list[float]
    guess: float
    nats: list[list[list[float]]]
    versions: dict


@dataclass(frozen=True, kw_only=True)
class TokensResult(Record):
    """psnr: of each frame in dB (None without any error). different: number of different codes of each frame."""

    command: str
    model: str
    input: str
    num_codes: int
    psnr: list[float | None]
    different: list[int]
    codes: list[list[list[int]]]
    versions: dict


@dataclass(frozen=True, kw_only=True)
class Arrow(Record):
    """Log-likelihood of clips minus that of their reverse, in nats per code.

    difference: mean over clips. ci95: bootstrap interval over videos. positive: share of clips with a positive
    difference, with its exact interval (over clips). forward, backward: mean nats per code by frame; the first entry
    of `backward` is the clips' last frame, which a reversed clip begins with. differences: of each clip.
    """

    difference: float
    ci95: list[float] | None
    positive: float
    positive_ci95: list[float]
    forward: list[float]
    backward: list[float]
    differences: list[float]


@dataclass(frozen=True, kw_only=True)
class ArrowResult(Record):
    """clips: their number; videos: of how many they are. tokens_per_clip: times a difference, nats per clip.

    untrained: of a twin with random weights; None without it.
    """

    command: str
    model: str
    dataset: str
    split: str | None
    clips: int
    videos: int
    num_frames: int
    tokens_per_clip: int
    seeds: dict
    trained: Arrow
    untrained: Arrow | None
    versions: dict
