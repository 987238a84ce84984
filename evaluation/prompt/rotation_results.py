"""The result of `toto prompt rotation`."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.results import Versus
from training.results import Record


@dataclass(frozen=True, kw_only=True)
class RotationScores(Record):
    """Angles of drawn frames against the truth, as lists over the horizon (G,) and over all drawn frames.

    error, within, psnr: median of the absolute error in degrees; share of frames within half a step of the true angle;
    mean PSNR in dB. *_ci95: 95 % intervals, objects resampled.
    """

    error: list[float]
    error_ci95: list[list[float]]
    within: list[float]
    within_ci95: list[list[float]]
    psnr: list[float]
    all_error: float
    all_error_ci95: list[float]
    all_within: float
    all_within_ci95: list[float]


@dataclass(frozen=True, kw_only=True)
class RotationResult(Record):
    """What `toto prompt rotation` writes.

    tokenizer: its fingerprint. angle_step: degrees between the views that frames are compared with. chance: share of
    angles guessed at random that are within half a step. scores: of the model ("greedy" or "sampled") and the floors.
    versus: the model's share within half a step minus that of each floor. seconds: for drawing.
    """

    command: str
    model: str
    tokenizer: str
    dataset: str
    split: str
    clips: int
    num_prompt_frames: int
    num_frames: int
    temperature: float
    angle_step: float
    chance: float
    scores: dict[str, RotationScores]
    versus: dict[str, Versus]
    seconds: float
    seeds: dict[str, int]
    versions: dict[str, str]
