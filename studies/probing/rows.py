"""The rows of a study: scores of a model, head, layer or floor over seeds, from result files, and their differences.

An interval resamples test items (whole videos where one gave several clips): for all seeds at once, and for both sides
of a difference at once where they are of the same items. It holds for these trained models and new items of the same
kind; it does not cover the pre-training seed, so each seed's value is listed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.metrics import METRICS, unpaired_difference
from evaluation.results import ProbeResult, Row, TaskResult
from tokenization.sources.labelled import group_of
from training.results import FinetuneResult, FinetuneScore
from training.scores import bootstrap_interval, wilson_interval

Result = ProbeResult | FinetuneResult
NO_DIFFERENCE = "no significant difference"


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    files: name of its result files without .json; with the suffixes _0, _1, ... they are its seeds. what: "best" (the
    layer and head chosen on validation), "head=linear", "layer=0" or "layer=last" (the best of those, also chosen on
    validation), "baseline=pixels", or "majority" (always the most common class).
    """

    name: str
    files: str
    what: str = "best"


@dataclass(frozen=True)
class Seed:
    """The score of one result. value, ci95: fractions; ci95 is None for a metric that needs predictions, without them.

    row: of the result, with layer and head. items: names, with the number of the clip in its video; predicted, true:
    class numbers (N,) in the order of these; None where the file does not keep them.
    """

    file: Path
    value: float
    ci95: list[float] | None
    n_test: int
    row: Row | FinetuneScore
    items: list[tuple[str, int]] | None = None
    predicted: np.ndarray | None = None
    true: np.ndarray | None = None


@dataclass(frozen=True)
class Difference:
    """A difference of two entries, or of two differences. verdict: "holds", "fails", NO_DIFFERENCE or "no interval"."""

    value: float
    ci95: list[float] | None
    why_unpaired: str | None

    @property
    def verdict(self) -> str:
        if self.ci95 is None:
            return "no interval"
        return "holds" if self.ci95[0] > 0 else "fails" if self.ci95[1] < 0 else NO_DIFFERENCE


def files_of(entry: Entry, results: dict[Path, Result]) -> list[Path]:
    """The result files of an entry, in the order of their seeds."""
    found = {}
    for file in results:
        named = re.fullmatch(rf"{re.escape(entry.files)}(?:_(\d+))?", file.stem)
        if named:
            found[file] = int(named[1] or -1)
    return sorted(found, key=found.__getitem__)


def read_seeds(entry: Entry, results: dict[Path, Result], metric: str) -> list[Seed]:
    """An entry's seeds; empty if it has no file, or its files have no such head, layer or baseline.

    results: of `toto probe` (its label with the largest margin) and `toto finetune`, by file.
    Raises:
        ValueError: a file has neither the metric nor the predictions to compute it from.
    """
    return [seed for file in files_of(entry, results) if (seed := _read(entry, file, results[file], metric))]


def _read(entry: Entry, file: Path, result: Result, metric: str) -> Seed | None:
    if isinstance(result, FinetuneResult):
        row, kept = (result.best, _kept_of_finetuning(result)) if entry.what == "best" else (None, None)
    else:
        what = entry.what.replace("=last", f"={result.depth}")
        row = _row(what, result.task)
        kept = row and _kept(what, result.task, row)
    if row is None:
        return None
    n_test = result.n_test
    ci95 = None
    if metric == "accuracy":
        correct = row.correct if isinstance(row, FinetuneScore) else round(row.accuracy * n_test)
        ci95 = row.ci95 or wilson_interval(correct, n_test)
    if kept is None:
        value = getattr(row, metric, None)
        if value is None:
            raise ValueError(
                f"{file} has no {metric.replace('_', ' ')} of {entry.what}, and no predictions of it; run the command "
                "again with this version and --predictions."
            )
        return Seed(file, value, ci95, n_test, row)
    keys, seen = [], Counter()
    for item in kept[0]:  # clips of one video share its name
        keys.append((item, seen[item]))
        seen[item] += 1
    order = sorted(range(len(keys)), key=keys.__getitem__)
    predicted, true = (np.asarray(numbers)[order] for numbers in kept[1:])
    return Seed(file, METRICS[metric](predicted, true), ci95, n_test, row, [keys[k] for k in order], predicted, true)


def _row(what: str, task: TaskResult) -> Row | None:
    kind, _, which = what.partition("=")
    if kind == "best":
        return task.best
    if kind == "baseline":
        return (task.baselines or {}).get(which)
    if kind == "majority":
        if task.majority is None:
            return None
        balanced = 1 / task.classes
        return Row(head="", val_accuracy=None, accuracy=task.majority, balanced_accuracy=balanced, ci95=None)
    selected = (task.predictions and task.predictions.selected) or {}
    wanted = {"layer": int(which)} if kind == "layer" else {kind: which}
    if what in selected:
        wanted = {"layer": selected[what].layer, "head": selected[what].head}
    rows = [row for row in task.layers if all(getattr(row, key) == value for key, value in wanted.items())]
    return max(rows, key=lambda row: row.val_accuracy, default=None)


def _kept(what: str, task: TaskResult, row: Row) -> tuple[list, list, list] | None:
    """(items, predicted, true) of a row, if the result contains its predictions."""
    kept = task.predictions
    if kept is None:
        return None
    kind, _, which = what.partition("=")
    best, predicted, selected = task.best, None, kept.selected or {}
    if (row.layer, row.head) == (best.layer, best.head) and kind not in ("baseline", "majority"):
        predicted = kept.predicted
    elif kind == "baseline":
        predicted = (kept.baselines or {}).get(which)
    elif kind == "majority":
        # The result does not say which class is the most common in training, only how common it is in the test.
        counts = Counter(kept.label)
        wanted = round(task.majority * len(kept.label))
        predicted = next(([c] * len(kept.label) for c, count in sorted(counts.items()) if count == wanted), None)
    elif what in selected:
        predicted = selected[what].predicted
    return None if predicted is None else (kept.items, predicted, kept.label)


def _kept_of_finetuning(result: FinetuneResult) -> tuple[list, list, list] | None:
    kept = result.predictions
    return kept and (kept.sources, kept.predictions, kept.labels)


def mean(seeds: list[Seed]) -> float:
    return sum(seed.value for seed in seeds) / len(seeds)


def unlike(*sides: list[Seed]) -> str | None:
    """Why seeds cannot be resampled together; None if all contain predictions of the same items."""
    first, *others = [seed for side in sides for seed in side]
    for seed in (first, *others):
        if seed.items is None:
            return f"{seed.file.name} does not contain these predictions"
    for seed in others:
        if seed.items != first.items or (seed.true != first.true).any():
            return f"{first.file.name} and {seed.file.name} are of different test items"
    return None


def interval(seeds: list[Seed], metric: str) -> list[float] | None:
    """95 % interval of the mean over seeds; None if there are no predictions and the metric is not a proportion."""
    if unlike(seeds) is None:
        return _resampled([(seeds, 1.0)], metric)
    if len(seeds) == 1 or metric != "accuracy":
        return seeds[0].ci95 if len(seeds) == 1 else None
    n_test = min(seed.n_test for seed in seeds)
    return wilson_interval(round(mean(seeds) * n_test), n_test)


def difference(better: list[Seed], worse: list[Seed], metric: str, pattern: str | None = None) -> Difference:
    """Mean over the seeds of `better` minus that of `worse`, paired if both contain predictions of the same items.

    pattern: of the items' names; items of one group (`labelled.group_of`), such as a recording, are resampled as one.
    """
    why = unlike(better, worse)
    if why is None:
        ci95 = _resampled([(better, 1.0), (worse, -1.0)], metric, pattern)
        return Difference(mean(better) - mean(worse), ci95, None)
    intervals = interval(better, metric), interval(worse, metric)
    if None in intervals:
        return Difference(mean(better) - mean(worse), None, why)
    found = unpaired_difference(mean(better), intervals[0], mean(worse), intervals[1])
    return Difference(found["difference"], found["ci95"], why)


def interaction(first: tuple, second: tuple, metric: str) -> Difference:
    """The difference of one pair of entries minus that of another. first, second: (better, worse)."""
    why = unlike(*first, *second)
    a, b = difference(*first, metric), difference(*second, metric)
    if why is None:
        signed = zip((*first, *second), (1.0, -1.0, -1.0, 1.0), strict=True)
        return Difference(a.value - b.value, _resampled(list(signed), metric), None)
    if a.ci95 is None or b.ci95 is None:
        return Difference(a.value - b.value, None, why)
    found = unpaired_difference(a.value, a.ci95, b.value, b.ci95)
    return Difference(found["difference"], found["ci95"], why)


def _resampled(signed: list[tuple[list[Seed], float]], metric: str, pattern: str | None = None) -> list[float]:
    """Bootstrap interval of a signed sum of means over seeds, all of the same items.

    Both metrics are sums over items with weights that depend on the true classes alone. So the correct predictions of
    all seeds and sides are added up per item first, (N,), and resampled once.
    """
    first = signed[0][0][0]
    rights = sum(sign / len(seeds) * (seed.predicted == seed.true) for seeds, sign in signed for seed in seeds)
    # One item is a group of its own, so that the page's intervals are not stratified by class.
    groups = [group_of(item, pattern) for item, _ in first.items]
    return bootstrap_interval(rights, first.true if metric == "balanced_accuracy" else None, groups)
