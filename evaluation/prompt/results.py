"""The result that `toto prompt score` writes, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from training.results import Record

WAYS = {
    "ceiling": "true label through the tokenizer",
    "tuned": "tuned model",
    "wrong_examples": "tuned model, labels of other examples",
    "swapped": "tuned model, another task's prompt id",
    "swapped_prompt": "tuned model, another task's prompt",
    "scratch": "same steps from scratch",
    "untuned": "untuned model",
    "mean_map": "mean map",
}
# of single pairs: few pixels may be anything else, so that drawing nothing looks good
PAIR_WAYS = WAYS | {"background": "background everywhere"}


@dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """The tuned model minus another way on the items that both have: mean, and paired 95 % bootstrap interval."""

    mean: float
    ci95: list[float] | None


@dataclass(frozen=True, kw_only=True)
class WayScore(Record):
    """A measure of one way of labelling: mean over items, its 95 % interval, and the items that could be judged."""

    mean: float | None
    ci95: list[float] | None
    items: int
    tuned_minus: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class TaskScores(Record):
    """A task: its prompt id, the id that `swapped` has, its range and number of levels, and measure -> way -> score."""

    prompt_id: int
    swapped_id: int
    low: float
    high: float
    unit: str
    levels: int
    scores: dict[str, dict[str, WayScore]]


@dataclass(frozen=True, kw_only=True)
class PromptResult(Record):
    """The file that `toto prompt score` writes.

    Fields:
        model, scratch, untuned: as they were named; scratch is None without that control.
        tokenizer: fingerprint. steps: of the tuning, None if it is not recorded.
        items: independent episodes, of which no two share a clip. held_out_hues: that no tuning row of masks had.
        seconds: of drawing all labels.
    """

    command: str
    model: str
    scratch: str | None
    untuned: str | None
    steps: int | None
    tokenizer: str
    dataset: str
    split: str
    items: int
    held_out_hues: list[int]
    seeds: dict[str, int]
    seconds: float
    tasks: dict[str, TaskScores]
    versions: dict


@dataclass(frozen=True, kw_only=True)
class PairScore(Record):
    """A pair of a folder.

    Fields:
        examples: names of the examples before it, in order.
        known: share of the pixels of its square whose truth is known; nothing else is judged.
        clipped: share of the known pixels whose truth is outside of the model's range, and was clipped to it.
        scores: measure -> way -> number; None where nothing could be judged.
    """

    pair: str
    examples: list[str]
    known: float
    clipped: float
    scores: dict[str, dict[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class PairsResult(Record):
    """The file that `toto prompt score --data` writes: no mean over pairs, since a handful supports none.

    Fields:
        model, scratch, untuned, steps, tokenizer, seconds: as of `PromptResult`.
        data: the folder. examples_from: the same folder, or the scenes that are the examples of all pairs.
        low, high, unit, levels: range of the numbers that the model draws, and how many it has colours for.
        side: of the square that a pair is resized and cropped to, in pixels; flow is in its pixels.
    """

    command: str
    model: str
    scratch: str | None
    untuned: str | None
    steps: int | None
    tokenizer: str
    data: str
    examples_from: str
    task: str
    low: float
    high: float
    unit: str
    levels: int
    side: int
    seed: int
    seconds: float
    pairs: list[PairScore]
    versions: dict
