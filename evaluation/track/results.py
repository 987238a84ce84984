"""The file that `toto track` writes, as dataclasses. All scores are fractions."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.results import Record, Versus


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """Means over objects. ci95: 95 % bootstrap interval of jf over sequences; None for a single sequence."""

    jf: float
    j: float
    f: float
    ci95: list[float] | None


@dataclass(frozen=True, kw_only=True)
class LayerScore(Score):
    """Scores of one layer; 0 is the embeddings. recall: share of frames above 0.5; decay: first minus last quarter."""

    layer: int
    j_recall: float
    j_decay: float
    f_recall: float
    f_decay: float


@dataclass(frozen=True, kw_only=True)
class FloorScore(Score):
    """A baseline. layer, layers: of the untrained model, its best one on these sequences, and all."""

    layer: int | None = None
    layers: list[LayerScore] | None = None


@dataclass(frozen=True, kw_only=True)
class BestLayer(Score):
    """The layer with the largest jf on these very sequences, as the paper reports it.

    versus: jf minus that of each baseline, and of "layer 0", paired over sequences (`summary.paired_interval`).
    chosen_on_others: scores if the layer of each sequence is the best one of all other sequences; None for a single
    sequence. It is what a choice without these sequences' masks would give.
    """

    layer: int
    versus: dict[str, Versus]
    chosen_on_others: Score | None


@dataclass(frozen=True, kw_only=True)
class ObjectScore(Record):
    """One object of one sequence: means over frames, shares above 0.5, first quarter minus last."""

    j: float
    j_recall: float
    j_decay: float
    f: float
    f_recall: float
    f_decay: float

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


@dataclass(frozen=True, kw_only=True)
class SequenceScores(Record):
    """One sequence. scores: by kind of features ("layer 4", "untrained 4", "patches", ...), an entry per object."""

    name: str
    frames: int
    size: list[int]
    seconds: float
    scores: dict[str, list[ObjectScore]]


@dataclass(frozen=True, kw_only=True)
class TrackResult(Record):
    """The file that `toto track` writes.

    Fields:
        setting: every detail of the propagation. resolution: side of the stretched frames.
        baselines: "copy" (the first mask), "position" (features that know only the place), "patches" (raw pixels),
            "layer 0", "untrained" and "ceiling" (true masks through the grid).
        skipped: sequence -> why it was not scored.
    """

    command: str
    model: str
    depth: int
    dataset: str
    split: str | None
    setting: dict
    resolution: int
    frames_per_row: int
    attention: str
    layers: list[LayerScore]
    best: BestLayer
    baselines: dict[str, FloorScore]
    sequences: list[SequenceScores]
    skipped: dict[str, str]
    seeds: dict[str, int]
    versions: dict
