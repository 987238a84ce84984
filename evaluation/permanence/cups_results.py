"""The file that `toto permanence cups` writes, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.results import Record, Versus


@dataclass(frozen=True, kw_only=True)
class StratumScore(Record):
    """The scores of one predictor on the clips of one stratum.

    accuracy: share of clips whose cell is right, with its 95 % interval. grid_l1: mean distance to the true cell, in
    steps along x and y. versus: of a control, the model's accuracy minus its own, paired over the clips.
    """

    clips: int
    accuracy: float
    ci95: list[float]
    grid_l1: float
    versus: Versus | None = None


@dataclass(frozen=True, kw_only=True)
class LayerScore(Record):
    """A layer: its setting chosen on validation, and its accuracy on the test clips by stratum ("all" among them)."""

    layer: int
    val_accuracy: float
    accuracy: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Predictor(Record):
    """What predicts the cell: the model, or a control.

    what: in words. layer: chosen on validation; None for controls without a model. top5: of all test clips. strata: by
    stratum ("all" among them). layers: of each. predicted: cell of each test clip.
    """

    what: str
    layer: int | None
    top5: float | None
    strata: dict[str, StratumScore]
    layers: list[LayerScore]
    predicted: list[int]


@dataclass(frozen=True, kw_only=True)
class Claim(Record):
    """Whether the model follows an object that is carried away unseen.

    stratum: on which it is made. is_shown: the model's accuracy there is above that of every control, each paired 95 %
    interval excluding 0. missing: the controls of which this is not so.
    """

    stratum: str
    is_shown: bool
    missing: list[str]


@dataclass(frozen=True, kw_only=True)
class CupsResult(Record):
    """The file that `toto permanence cups` writes.

    Fields:
        media: what the model was trained on (`media_seen.to_json`); None if it is not recorded.
        dataset, num_frames, head, tokens: as the flags say. clips: by split.
        predictors: "model" first, then the controls by name.
        cell, stratum: class numbers of the test clips.
    """

    command: str
    model: str
    media: list[dict] | None
    dataset: str
    num_frames: int
    head: str
    tokens: str
    clips: dict[str, int]
    claim: Claim
    predictors: dict[str, Predictor]
    cell: list[int]
    stratum: list[int]
    seeds: dict[str, int]
    versions: dict
