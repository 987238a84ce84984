"""The files that `toto robot evaluate` and `toto robot arms` write, as dataclasses. Success is a fraction."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.results import Record, Versus
from evaluation.robot.layer_curve import LayerFit


@dataclass(frozen=True, kw_only=True)
class EpisodeScore(Record):
    """One test episode. seed: of its start. steps: actions until success, or the most allowed."""

    seed: int
    success: bool
    steps: int


@dataclass(frozen=True, kw_only=True)
class Latency(Record):
    """Milliseconds per observation: the simulator's step with its picture, features of the frame, the policy's head."""

    rendering: float
    seeing: float
    head: float


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """Success over test episodes.

    ci95: Wilson's interval over the episodes; of several policy seeds, that of `scoring.pooled_interval`. steps: mean
    over the episodes that succeeded, or None.
    """

    success: float
    ci95: list[float]
    steps: float | None
    episodes: list[EpisodeScore]


@dataclass(frozen=True, kw_only=True)
class PolicyScore(Score):
    """A policy. arm, model, layer: what it sees. media: what its backbone was trained on, if recorded."""

    policy: str
    arm: str
    model: str | None
    layer: int | None
    media: list[dict] | None
    latency: Latency
    videos: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Record):
    """The file that `toto robot evaluate` writes. seeds: the first start and their number."""

    command: str
    task: str
    max_steps: int
    policies: list[PolicyScore]
    seeds: dict[str, int]
    versions: dict


@dataclass(frozen=True, kw_only=True)
class SeedScore(Score):
    """A policy of one arm. seed: of its training. seconds: of its training and its test episodes.

    dagger: success of each round's driving policy. videos: files next to the result.
    """

    seed: int
    seconds: float
    latency: Latency
    dagger: list[float] | None = None
    videos: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class ArmScore(Record):
    """An arm. what: it sees. success, ci95: pooled over policy seeds. failed: the seeds that never succeeded.

    versus: of another arm than "toto", the success of "toto" minus its own, paired by seed and start.
    """

    what: str
    model: str | None
    layer: int | None
    success: float
    ci95: list[float]
    failed: list[int]
    seeds: list[SeedScore]
    versus: Versus | None = None


@dataclass(frozen=True, kw_only=True)
class ArmsResult(Record):
    """The file that `toto robot arms` writes.

    Fields:
        media: what the model was trained on; None if not recorded.
        demonstrations: their number. max_steps: of a test episode.
        expert, random: scripted expert (ceiling) and uniform random actions (floor) from the same starts.
        arms: by name; "toto, layer N" is a layer of toto that was not chosen. curves: of each arm whose layer was.
        seeds: number of policies of each arm, first test start, number of test starts.
        settings: flags and demonstrations that a policy's score depends on; with the same ones, arms can be added.
        errors: of arms that have no score, one sentence each.
    """

    command: str
    model: str | None
    media: list[dict] | None
    task: str
    demonstrations: int
    max_steps: int
    expert: Score
    random: Score
    arms: dict[str, ArmScore]
    curves: dict[str, list[LayerFit]]
    seeds: dict[str, int]
    versions: dict
    settings: dict | None = None
    errors: dict[str, str] | None = None
