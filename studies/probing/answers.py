"""The answers of a study's files to its questions: rows, differences, sentences, and a figure of the layers."""

from __future__ import annotations

from pathlib import Path

from evaluation.probe.tasks import TASKS
from evaluation.report.comparisons import words
from evaluation.report.probe_figures import comparison_figure
from evaluation.report.reading import controls, percent
from evaluation.results import Baseline, Best, ProbeResult, Row, TaskResult
from studies.probing.rows import (
    NO_DIFFERENCE,
    Difference,
    Result,
    Seed,
    difference,
    files_of,
    interaction,
    interval,
    mean,
    read_seeds,
)
from studies.probing.sections import Section, Side
from tokenization.sources.labelled import group_of
from training.publish.media_seen import identify
from training.results import FinetuneScore

OVERLAP = ", but seeds overlap"
# verdict -> what a sentence says
RELATIONS = {"holds": "above", "fails": "below", NO_DIFFERENCE: "not significantly different from"}


class Answer:
    """A section with the numbers of its files.

    results: all results by file.
    Attributes:
        seeds: entry name -> its seeds, of entries that have any. missing: the other entries.
        differences: [(claim, `Difference`, whether seeds overlap in spite of a clear verdict)] of the claims with data.
    """

    def __init__(self, section: Section, results: dict[Path, Result]):
        self.section, self.results = section, results
        read = {entry.name: read_seeds(entry, results, section.metric) for entry in section.entries}
        self.seeds: dict[str, list[Seed]] = {name: seeds for name, seeds in read.items() if seeds}
        self.missing = [entry for entry in section.entries if entry.name not in self.seeds]
        self.differences = [
            (claim, *self._difference(*claim)) for claim in section.claims if names(claim) <= set(self.seeds)
        ]

    def _difference(self, better: Side, worse: Side) -> tuple[Difference, bool]:
        if isinstance(better, tuple):
            sides = [tuple(self.seeds[name] for name in side) for side in (better, worse)]
            return interaction(*sides, self.section.metric), False
        a, b = self.seeds[better], self.seeds[worse]
        found = difference(a, b, self.section.metric)
        higher, lower = (a, b) if found.value > 0 else (b, a)
        overlap = min(seed.value for seed in higher) <= max(seed.value for seed in lower)
        return found, overlap and found.verdict in ("holds", "fails")

    def sentences(self) -> list[str]:
        """For each side compared: what it is above, below, and not significantly different from."""
        found = []
        for better in dict.fromkeys(claim[0] for claim, *_ in self.differences):
            mine = [(claim[1], *found) for claim, *found in self.differences if claim[0] == better]
            said = []
            for verdict, relation in RELATIONS.items():
                others = [
                    f"{name(worse)} ({points(each.value)}{OVERLAP * overlap})"
                    for worse, each, overlap in mine
                    if each.verdict == verdict
                ]
                said += [f"{relation} {words(others)}"] if others else []
            if said:
                found.append(f"{name(better)} is {'; '.join(said)}.")
        # A word such as iGPT keeps its small first letter.
        return [text[0].upper() + text[1:] if text.split()[0].rstrip(":").islower() else text for text in found]

    def rows(self) -> list[list[str]]:
        """A row per entry; those without a file say "not run"."""
        found = []
        for entry in self.section.entries:
            seeds = self.seeds.get(entry.name)
            if seeds is None:
                found.append([entry.name, "not run", "", "", ""])
                continue
            ci95 = interval(seeds, self.section.metric)
            value = percent(mean(seeds), ci95) if ci95 else f"{100 * mean(seeds):.1f} %"
            each = [f"{100 * seed.value:.1f}" for seed in seeds]
            spread = f"{', '.join(each)}" if len(seeds) > 1 else "one"
            where = dict.fromkeys(chosen(seed.row) for seed in seeds)
            found.append([entry.name, value, spread, "; ".join(where), f"{seeds[0].n_test:,}"])
        return found

    def difference_rows(self) -> list[list[str]]:
        found = []
        for (better, worse), each, overlap in self.differences:
            low_high = f" [{points(each.ci95[0])}, {points(each.ci95[1])}]" if each.ci95 else ""
            kind = "paired" if each.why_unpaired is None else f"unpaired: {each.why_unpaired}"
            verdict = each.verdict + OVERLAP * overlap
            found.append([f"{name(better)} − {name(worse)}", points(each.value) + low_high, kind, verdict])
        return found

    def by_group(self) -> list[str]:
        """Scores per group, and differences with groups resampled, if test groups were left out one by one; else empty.

        One line is on the first entry, with its score in every group, and one on its comparisons.
        """
        first = self.section.entries[0].name
        seeds = self.seeds.get(first, [])
        pattern = left_out(self.results[seeds[0].file]) if seeds else None
        if pattern is None or any(seed.items is None for seed in seeds):
            return []
        right = sum((seed.predicted == seed.true) / len(seeds) for seed in seeds)
        groups = [group_of(item, pattern) for item, _ in seeds[0].items]
        each = {}
        for name_, value in zip(groups, right, strict=True):
            each.setdefault(name_, []).append(value)
        shares = [f"{100 * sum(values) / len(values):.0f} % of {len(values)}" for values in each.values()]
        found = [f"Per recording, {name(first)} is correct on {words(shares)}."]
        intervals = []
        for (better, worse), _, _ in self.differences:
            if better == first:
                whole = difference(seeds, self.seeds[worse], self.section.metric, pattern)
                if whole.why_unpaired is None:
                    intervals.append(f"{worse} {points(whole.ci95[0])} to {points(whole.ci95[1])}")
        if intervals and len(each) > 1:
            found.append(
                f"If these {len(each)} recordings are resampled instead of clips (they are too few for intervals that "
                f"are wide enough), the intervals of the differences are: {words(intervals)}."
            )
        return found

    def facts(self) -> list[str]:
        """What was probed, from the files: data, counts, frames, heads; files that agree share a sentence."""
        found: dict[str, list[str]] = {}
        for file in dict.fromkeys(file for entry in self.section.entries for file in files_of(entry, self.results)):
            found.setdefault(fact(self.results[file]), []).append(f"`{file.stem}`")
        return [f"{words(files)}: {text}" for text, files in found.items()]

    def figure(self):
        """Mean accuracy over seeds per layer, of the entries to draw; None if there are no curves."""
        curves = {}
        for entry in self.section.entries:
            if entry.name in self.section.curves and entry.name in self.seeds:
                results = [self.results[seed.file] for seed in self.seeds[entry.name]]
                if all(isinstance(result, ProbeResult) and len(result.task.layers) > 1 for result in results):
                    curves[entry.name] = averaged(results, with_floors=not curves)
        if not curves:
            return None
        label = self.section.title.partition(":")[0]
        tasks = [{label: task} for task, _ in curves.values()]
        return comparison_figure(list(curves), [depth for _, depth in curves.values()], tasks)


def name(side: Side) -> str:
    return side if isinstance(side, str) else f"the gain of {side[0]} over {side[1]}"


def names(claim: tuple[Side, Side]) -> set[str]:
    return {each for side in claim for each in ((side,) if isinstance(side, str) else side)}


def chosen(row: Row | FinetuneScore) -> str:
    head = row.head.replace("_", " ")
    return head if row.layer is None else f"layer {row.layer}, {head}"


def left_out(result: Result) -> str | None:
    """The pattern of the test groups that were left out one by one; None where none were."""
    return result.data.leave_one_group_out if isinstance(result, ProbeResult) else None


def fact(result: Result) -> str:
    """Data, counts, frames and heads of a result, in words."""
    data, is_probe = result.data, isinstance(result, ProbeResult)
    if is_probe:
        parts = {"train": result.n_train, "validation": result.n_validation, "test": result.n_test}
    else:
        parts = {part: split.clips for part, split in data.splits.items()}
    name = identify(data.dataset, "test")[0]
    said = [f"{name}, {words([f'{count:,} {part}' for part, count in parts.items() if count is not None])} items"]
    is_image = data.num_frames == 1 or (name in TASKS and TASKS[name].kind == "image")
    frames = "images" if is_image else f"{data.num_frames} frames" if data.num_frames else "frames"
    said.append(f"{frames} of {data.resolution} pixels" if is_probe else frames)
    if is_probe:
        said += probe_facts(result)
    return "; ".join(said) + "."


def probe_facts(result: ProbeResult) -> list[str]:
    """Views, groups left out, layers, heads and controls of a probe, in words."""
    said, task = [], result.task
    if views := result.data.views:
        said.append(f"each tested by {views[0]} windows and {views[1]} crops")
    if pattern := left_out(result):
        kept = task.predictions.items if task.predictions else []
        groups = len({group_of(item, pattern) for item in kept})
        said.append(
            f"each of the {groups or ''} test groups scored by heads trained also on the others".replace("  ", " ")
        )
    heads = dict.fromkeys(row.head.replace("_", " ") for row in task.layers)
    said.append(f"{len({row.layer for row in task.layers})} layers; heads: {words(list(heads))}")
    return said + controls(result)


def averaged(results: list[ProbeResult], with_floors: bool) -> tuple[TaskResult, int | None]:
    """(the task of several seeds as one, for a figure: mean accuracies, mean bounds of their intervals; its depth)."""

    def means(rows: list[Row]) -> dict:
        found = {name: sum(getattr(each, name) for each in rows) / len(rows) for name in ("accuracy", "val_accuracy")}
        bounds = [sum(values) / len(rows) for values in zip(*(row.ci95 for row in rows), strict=True)]
        return found | {"balanced_accuracy": None, "ci95": bounds}

    grouped: dict[tuple, list[Row]] = {}
    for result in results:
        for each in result.task.layers:
            grouped.setdefault((each.layer, each.head), []).append(each)
    layers = [Row(layer=layer, head=head, **means(rows)) for (layer, head), rows in grouped.items()]
    best = Best(**vars(max(layers, key=lambda each: each.val_accuracy)), versus=None)
    floors = {}
    if with_floors:
        for who in dict.fromkeys(who for result in results for who in result.task.baselines):
            rows = [result.task.baselines[who] for result in results if who in result.task.baselines]
            floors[who] = Baseline(head=None, **means(rows))
    first = results[0]
    scores = {"classes": None, "majority": None, "per_class": None}
    return TaskResult(chance=first.task.chance, layers=layers, best=best, baselines=floors, **scores), first.depth


def points(value: float) -> str:
    return f"{100 * value:+.1f}"
