"""The results that `toto probe` and `toto generate` write, as dataclasses, and the command line that each records."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from training.results import Record

if TYPE_CHECKING:
    from typing import Self


def command_line(verb: str, argv: list[str] | None) -> str:
    """The command as a user would type it."""
    return shlex.join(["toto", verb, *(sys.argv[1:] if argv is None else argv)])


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """The scores of a head on a layer, as fractions. layer: None for a baseline with a single layer.

    lr, weight_decay, penalty, k: the setting chosen on validation; which of them depends on the head. ci95: 95 %
    interval of the test accuracy. top5, grid_l1: of classes that are the cells of a grid, the share of items whose cell
    is among the five most likely ones, and the mean distance to the true cell in steps along x and y.
    """

    layer: int | None = None
    head: str | None
    lr: float | None = None
    weight_decay: float | None = None
    penalty: float | None = None
    k: float | None = None
    val_accuracy: float | None
    accuracy: float
    balanced_accuracy: float | None
    ci95: list[float] | None
    top5: float | None = None
    grid_l1: float | None = None

    @property
    def setting(self) -> dict[str, float]:
        """The chosen setting, such as {"lr": 0.001, "weight_decay": 0.1}."""
        values = {key: getattr(self, key) for key in ("lr", "weight_decay", "penalty", "k")}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Versus(Record):
    """The chosen row minus a baseline on the same clips: paired difference, 95 % interval and verdict."""

    difference: float
    ci95: list[float]
    verdict: str | None


@dataclass(frozen=True, kw_only=True)
class Best(Row):
    """The row chosen on validation. versus: its difference to each baseline and to "layer 0", if that was tried."""

    versus: dict[str, Versus] | None


@dataclass(frozen=True, kw_only=True)
class Baseline(Row):
    """The chosen row of a baseline. layers: all its rows, of the untrained model."""

    layers: list[Row] | None = None


@dataclass(frozen=True, kw_only=True)
class Selected(Record):
    """The row that validation chooses among some of the rows. predicted: its class for every test item."""

    layer: int
    head: str
    predicted: list[int]


@dataclass(frozen=True, kw_only=True)
class Predictions(Record):
    """Class numbers of the test items: true, predicted by the chosen row and by each baseline.

    items: names; clips of one video share a name. groups: the recording of each item, by `--group_by`; intervals
    resample whole ones. selected: the best row of each head ("head=linear") and of the first and last layer
    ("layer=0").
    """

    items: list[str]
    label: list[int]
    predicted: list[int]
    baselines: dict[str, list[int]] | None
    selected: dict[str, Selected] | None
    groups: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskResult(Record):
    """One label of a probe.

    classes: their number. chance, majority: accuracy of guessing, and of always predicting the most common class.
    per_class: of `scores.per_class_accuracy`. class_names: of labels that are text. confusion: a row for each true
    class.
    """

    classes: int | None
    chance: float | None
    majority: float | None
    layers: list[Row]
    best: Best
    baselines: dict[str, Baseline] | None
    per_class: list[dict] | None
    class_names: list[str] | None = None
    confusion: list[list[int]] | None = None
    predictions: Predictions | None = None

    @property
    def untrained_layers(self) -> list[Row]:
        """All rows of the untrained model; empty if it was not a baseline."""
        twin = (self.baselines or {}).get("untrained")
        return (twin and twin.layers) or []


@dataclass(frozen=True, kw_only=True)
class Split(Record):
    """One of the three splits. split: where its clips come from, in words. sources: number of files or rows."""

    split: str
    clips: int | None
    sources: int | None


@dataclass(frozen=True, kw_only=True)
class ProbeData(Record):
    """The data of a probe.

    kind: "image" or "video". leave_one_group_out: the pattern of the groups. groups: number of groups in test that
    intervals resample as wholes; None where they resample clips, or videos.
    """

    dataset: str | None
    kind: str | None
    num_frames: int | None
    stride: int | None
    fps: float | None
    resolution: int | None
    detail: int | None
    frame_order: str | None
    views: list[int] | None
    leave_one_group_out: str | None
    splits: dict[str, Split] | None
    skipped: list[dict] | None
    groups: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Record):
    """The file that `toto probe` writes.

    In JSON the keys of the label with the largest margin, `label`, are also at the outermost level.

    Fields:
        depth: number of the model's deepest layer.
        media: what the model was trained on (`media_seen.to_json`); None if it is not recorded.
        control: what was changed on purpose, so that the accuracy is not that of the model as it was trained.
        n_train, n_validation: clips. n_test: test items, which are clips, or videos if several clips of each are
            averaged.
        tasks: by label.
        floors_command: in the files of a study, the command of the probe that its baselines come from.
    """

    command: str | None
    model: str | None
    depth: int | None
    media: list[dict] | None
    control: str | None = None
    data: ProbeData | None
    versions: dict | None
    seeds: dict[str, int] | None
    label: str | None
    n_train: int | None
    n_validation: int | None
    n_test: int
    tasks: dict[str, TaskResult]
    floors_command: str | None = None

    @property
    def task(self) -> TaskResult:
        """The label with the largest margin over the baselines on validation."""
        return self.tasks[self.label]

    @classmethod
    def from_json(cls, content: dict) -> Self:
        """As `Record.from_json`; a file of one label may have no `tasks`, and its label no name."""
        task_keys = TaskResult.json_fields()
        copied = {key: value for key, value in content.items() if key in task_keys}
        tasks = content.get("tasks") or {content.get("label", "accuracy"): copied}
        label = content.get("label", next(iter(tasks)))
        if label not in tasks:
            raise ValueError(f"The label {label!r} is not one of the tasks {', '.join(tasks)}; correct the file.")
        own = {
            key: value
            for key, value in content.items()
            if key in cls.json_fields() or (key not in task_keys and key not in tasks[label])
        }
        found = super().from_json(own | {"label": label, "tasks": tasks})
        absent = ({"label", "tasks"} | tasks[label].keys()) - content.keys()
        return replace(found, lacks=found.lacks | absent)

    def to_json(self) -> dict:
        copied = {key: value for key, value in self.task.to_json().items() if key not in self.lacks}
        content, names = super().to_json(), list(self.json_fields())
        first = names[: names.index("n_train")]
        return (
            {key: content[key] for key in first if key in content}
            | copied
            | {key: value for key, value in content.items() if key not in first}
        )


@dataclass(frozen=True, kw_only=True)
class GenerationResult(Record):
    """The JSON file next to a sheet of `toto generate`.

    video: as given to the command. source: of the clip. num_prompt_frames, num_frames: given and generated. sampling:
    temperature, top_k and top_p. drop_frames: oldest frames dropped at a time beyond the model's context.
    """

    command: str | None
    model: str
    video: str | None
    source: str
    num_prompt_frames: int
    num_frames: int
    sampling: dict
    drop_frames: int | None
    recompute: bool | None
    seeds: dict[str, int]
    tokens_per_second: float
    seconds_per_frame: float
    versions: dict | None


@dataclass(frozen=True, kw_only=True)
class Curve(Record):
    """A measure at each horizon: the mean over clips, its 95 % interval, and the number of clips that it could judge.

    None where it could judge none, or too few for an interval.
    """

    mean: list[float | None]
    ci95: list[list[float] | None]
    clips: list[int]


@dataclass(frozen=True, kw_only=True)
class Share(Record):
    """The share of cases that are right, its 95 % interval over clips, and the share of each part of being right."""

    mean: float | None
    ci95: list[float] | None
    cases: int
    parts: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Rhythm(Record):
    """Mean autocorrelation of objects' pictures at their true period, and at the other lags.

    versus: at the period minus at the other lags, paired; None for fewer than two clips.
    """

    at_period: float | None
    other_lags: float | None
    cases: int
    versus: Versus | None


@dataclass(frozen=True, kw_only=True)
class PermanenceControl(Record):
    """Shares of returns in which the object is drawn where it comes back, and the same with it deleted from the prompt.

    The mean is of the part `drawn` of the event `returned`, the part `right` is the event itself. versus: with the
    object minus deleted, paired.
    """

    with_object: Share
    deleted: Share
    versus: Versus


@dataclass(frozen=True, kw_only=True)
class ContinuationScores(Record):
    """The measures of one way of continuing clips; docs/continuations.md defines them.

    iou: of moving objects' masks. iou_of_ceiling: as a share of the ceiling's. identity, place: share of objects.
    codes, object_codes, changed_codes: share of tokens. psnr: in dB, of the mean squared error. bounce, returned,
    period: shares of cases. ssim, rhythm: None in files of earlier versions.
    """

    iou: Curve
    iou_of_ceiling: list[float | None] | None
    identity: Curve
    place: Curve
    codes: Curve
    object_codes: Curve
    changed_codes: Curve
    psnr: Curve
    bounce: Share
    returned: Share
    period: Share
    ssim: Curve | None = None
    rhythm: Rhythm | None = None


@dataclass(frozen=True, kw_only=True)
class ContinuationResult(Record):
    """The file that `toto generate --score` writes.

    Fields:
        tokens: that the model was trained on; None if it is not recorded.
        tokenizer: fingerprint of its visual tokenizer.
        clips: scored. num_prompt_frames, num_frames: given and drawn.
        sampling: num_samples, temperature, top_k and top_p. floor_clips: that the previous-frame predictor counted.
        seconds: of generating the greedy and the sampled frames.
        scores: by way of continuing: "greedy", "sampled" (mean of the drawings), "best" (of each clip's drawings), the
            floors "copy", "constant_velocity", "previous_frame" and "untrained", and "ceiling".
        nats: loss of the true frames' codes, in nats per token: "teacher_forced" after the true frames before them,
            "greedy" and "sampled" after the drawn ones. None in files of earlier versions.
        permanence: of the greedy frames; None in files of earlier versions, and without returns.
    """

    command: str
    model: str
    tokens: int | None
    tokenizer: str
    dataset: str
    split: str
    clips: int
    num_prompt_frames: int
    num_frames: int
    sampling: dict
    floor_clips: int
    seeds: dict[str, int]
    seconds: dict[str, float]
    scores: dict[str, ContinuationScores]
    versions: dict
    nats: dict[str, Curve] | None = None
    permanence: PermanenceControl | None = None


@dataclass(frozen=True, kw_only=True)
class FrameScores(Record):
    """The measures of one way of continuing clips of which only pixels and codes are known."""

    codes: Curve
    changed_codes: Curve
    psnr: Curve
    ssim: Curve


@dataclass(frozen=True, kw_only=True)
class FrameContinuationResult(ContinuationResult):
    """The file that `toto generate --score` writes for data other than toyworld:motion.

    resolution: side of the frames in pixels. stride, fps: of videos. sources: "FILE@FRAME", where each clip begins.
    """

    scores: dict[str, FrameScores]
    resolution: int
    stride: int | None = None
    fps: float | None = None
    sources: list[str]


@dataclass(frozen=True, kw_only=True)
class CheckpointScores(Record):
    """A checkpoint (RUN/step_N), the training tokens that it and earlier runs have seen, and its scores, greedy."""

    checkpoint: str
    tokens: int
    scores: ContinuationScores


@dataclass(frozen=True, kw_only=True)
class CheckpointsResult(Record):
    """The file that `toto generate --score --checkpoints` writes.

    levels: of the floors that do not depend on the model, "copy" and "constant_velocity", and of the "ceiling".
    """

    command: str
    model: str
    tokenizer: str
    dataset: str
    split: str
    clips: int
    num_prompt_frames: int
    num_frames: int
    points: list[CheckpointScores]
    levels: dict[str, ContinuationScores]
    versions: dict
