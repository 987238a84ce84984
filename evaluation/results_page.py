"""`toto report --markdown`: a page of the probing study, from committed result files and nothing else.

The same files give the same bytes. No number stands in this file or in `study_sections`: all come from the results.
"""

from __future__ import annotations

import os
from pathlib import Path

from evaluation.claims import controls, percent, words
from evaluation.layer_plots import comparison_figure
from evaluation.ledger import identify
from evaluation.metrics import wilson_interval
from evaluation.page import MEDIA_HEAD, media_cells
from evaluation.probe_data import group_of
from evaluation.study import Difference, Seed, difference, files_of, interaction, interval, mean, read_seeds
from evaluation.study_sections import COSTS, SECTIONS, Section, Side

READING = (
    "How to read the numbers. The value of a model is the mean over its pre-training seeds, each of which stands "
    "beside it. Brackets are 95 % intervals over test items, which are drawn anew (whole videos, where one gave "
    "several clips) for all seeds at once; a difference is paired where both sides kept their predictions of the "
    "same items, and says so where it is not. These intervals hold for the models that were trained. How much "
    "another seed would change is not in them: a few seeds give no honest interval of their own, so their values are "
    "shown, and a verdict says where the seeds of both sides overlap. A comparison *holds* when its whole interval "
    "is above zero, *fails* when it is below, and is *not apart* otherwise. Layer, head and learning rate are chosen "
    "on validation, inside each seed."
)
OVERLAP = ", but seeds overlap"
COUNTED = {"holds": "hold", "fails": "fail", "not apart": "are not apart", "no interval": "have no interval"}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


class Answer:
    """A section with the numbers of its files.

    results: all results by file.
    Attributes:
        seeds: entry name -> its seeds, of those that have any. missing: names of the others.
        differences: [(claim, `Difference`, whether seeds overlap though the verdict is clear)] of the claims told.
    """

    def __init__(self, section: Section, results: dict[Path, dict]):
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
        """For each thing compared: what it is above, what it is below, and what it is not apart from."""
        found = []
        for better in dict.fromkeys(claim[0] for claim, *_ in self.differences):
            mine = [(claim[1], *told) for claim, *told in self.differences if claim[0] == better]
            said = []
            for verdict, relation in (("holds", "above"), ("fails", "below"), ("not apart", "not apart from")):
                others = [
                    f"{name(worse)} ({points(each.value)}{OVERLAP * overlap})"
                    for worse, each, overlap in mine
                    if each.verdict == verdict
                ]
                said += [f"{relation} {words(others)}"] if others else []
            if said:
                found.append(f"{name(better)} is {'; '.join(said)}.")
        return [sentence[0].upper() + sentence[1:] for sentence in found]

    def rows(self) -> list[list[str]]:
        """A row an entry; those without a file say so."""
        found = []
        for entry in self.section.entries:
            seeds = self.seeds.get(entry.name)
            if seeds is None:
                found.append([entry.name, "not run", "", "", ""])
                continue
            ci95 = interval(seeds, self.section.metric)
            value = percent({"accuracy": mean(seeds), "ci95": ci95}) if ci95 else f"{100 * mean(seeds):.1f} %"
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

    def facts(self) -> list[str]:
        """What was probed, from the files: data, counts, frames, heads; alike files in one sentence."""
        found: dict[str, list[str]] = {}
        for file in dict.fromkeys(file for entry in self.section.entries for file in files_of(entry, self.results)):
            found.setdefault(fact(self.results[file]), []).append(f"`{file.stem}`")
        return [f"{words(files)}: {told}" for told, files in found.items()]

    def figure(self):
        """Accuracy per layer, means over seeds, of the entries that are to be drawn; None where there are no curves."""
        curves = {}
        for entry in self.section.entries:
            if entry.name in self.section.curves and entry.name in self.seeds:
                results = [self.results[seed.file] for seed in self.seeds[entry.name]]
                if all(len(result["layers"]) > 1 for result in results):
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


def chosen(row: dict) -> str:
    head = row["head"].replace("_", " ")
    return f"layer {row['layer']}, {head}" if "layer" in row else head


def fact(result: dict) -> str:
    """Data, counts, frames and heads of a result, in words."""
    data = result["data"]
    counts = [
        f"{result[key]:,} {part}"
        for key, part in (("n_train", "train"), ("n_validation", "validation"), ("n_test", "test"))
        if key in result
    ]
    counts = counts[:-1] if len(counts) == 1 else counts  # of a fine-tuning the splits tell all three
    counts = counts or [f"{split['clips']:,} {part}" for part, split in data["splits"].items()]
    said = [f"{identify(data['dataset'], 'test')[0]}, {words(counts)} items"]
    if data.get("num_frames"):
        frames = "1 frame" if data["num_frames"] == 1 else f"{data['num_frames']} frames"
        said.append(f"{frames} of {data['resolution']} pixels" if "resolution" in data else frames)
    if pattern := data.get("leave_one_group_out"):
        kept = result["tasks"][result["label"]].get("predictions", {}).get("items", [])
        groups = len({group_of(item, pattern) for item in kept})
        said.append(f"each of the {groups or ''} test groups scored by heads that saw the others".replace("  ", " "))
    if "layers" in result:
        heads = dict.fromkeys(row["head"].replace("_", " ") for row in result["layers"])
        said.append(f"{len({row['layer'] for row in result['layers']})} layers; heads: {words(list(heads))}")
    said += controls(result)
    return "; ".join(said) + "."


def averaged(results: list[dict], with_floors: bool) -> tuple[dict, int | None]:
    """(the task of several seeds as one, for a figure: mean accuracies with Wilson intervals; its depth)."""
    n_test = results[0]["n_test"]

    def row(rows: list[dict], **key) -> dict:
        accuracy = sum(each["accuracy"] for each in rows) / len(rows)
        chosen_by = sum(each["val_accuracy"] for each in rows) / len(rows)
        return key | {
            "accuracy": accuracy,
            "val_accuracy": chosen_by,
            "ci95": wilson_interval(round(accuracy * n_test), n_test),
        }

    grouped: dict[tuple, list[dict]] = {}
    for result in results:
        for each in result["layers"]:
            grouped.setdefault((each["layer"], each["head"]), []).append(each)
    layers = [row(rows, layer=layer, head=head) for (layer, head), rows in grouped.items()]
    floors = {}
    if with_floors:
        for who in dict.fromkeys(who for result in results for who in result.get("baselines", {})):
            floors[who] = row([result["baselines"][who] for result in results if who in result["baselines"]])
    task = {"layers": layers, "best": max(layers, key=lambda each: each["val_accuracy"]), "baselines": floors}
    return task | {"chance": results[0]["chance"]}, results[0].get("depth")


def costs_lines(costs: dict) -> list[str]:
    """What pre-training cost, in Markdown blocks; the tokenizer is charged to every Toto.

    costs: {"models": {name: {key: number}}, "tokenizer_training_cpu_seconds": number, "steps": {step: {"cpu_seconds"}},
    "search": {model: {learning rate: validation loss}}}, all but the first optional.
    """
    spent = {step: told["cpu_seconds"] for step, told in costs.get("steps", {}).items()}
    encoding = sum(seconds for step, seconds in spent.items() if step.startswith("tokenize/"))
    training = costs.get("tokenizer_training_cpu_seconds")
    rows = []
    for model, told in costs["models"].items():
        if told.get("kind") == "toto" and training is not None:
            told = told | {"charged_cpu_seconds": told["cpu_seconds"] + training + encoding}
        rows.append([model, *(cost(key, told.get(key)) for key, _ in COSTS)])
    lines = [table(["model", *(heading for _, heading in COSTS)], rows)]
    if training is not None:
        lines.append(
            f"Charged to every Toto, though it is done once: {training / 60:,.0f} CPU minutes for training the "
            f"tokenizer and {encoding / 60:,.1f} for encoding all media of the study. FLOPs are those of the model "
            "alone, forward and backward."
        )
    if costs.get("search"):
        searched = [[model, *(f"{rate}: {loss:.3f}" for rate, loss in found.items())]
                    for model, found in costs["search"].items()]  # fmt: skip
        width = max(map(len, searched))
        head = ["search of the learning rate", *["rate: validation loss"] * (width - 1)]
        lines.append(table(head, [row + [""] * (width - len(row)) for row in searched]))
    return lines


def cost(key: str, value: float | str | dict | None) -> str:
    """A number of costs.json with the digits that fit its kind."""
    if value is None:
        return "—"
    if isinstance(value, dict):
        return ", ".join(f"{who} {cost(key, each)}" for who, each in value.items())
    if key.endswith("_seconds"):
        return f"{value / 60:,.1f}"
    if key == "flops":
        return f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def section_lines(answer: Answer, image: str | None, told: set[str]) -> list[str]:
    """The Markdown of a section, in blocks. told: facts of files that stand further up; grows."""
    section = answer.section
    lines = [f"## {section.title}", section.about]
    if not answer.seeds:
        return [*lines, f"Not run: {not_there([entry.files for entry in section.entries])}."]
    lines += answer.sentences()
    metric = section.metric.replace("_", " ")
    lines.append(table(["", f"{metric} [95 %]", "seeds", "chosen on validation", "n test"], answer.rows()))
    if answer.differences:
        lines.append(table(["difference", "points [95 %]", "interval", "verdict"], answer.difference_rows()))
    if image:
        lines.append(f"![Accuracy per layer: {section.title}]({image})")
        lines.append(
            "Means over seeds with 95 % intervals over test items; a ring marks what the mean validation accuracy "
            "chooses. Level lines: baselines, and chance."
        )
    facts = [each for each in answer.facts() if each not in told]
    told.update(facts)
    lines += facts
    if missing := [each.files for each in answer.missing if not files_of(each, answer.results)]:
        lines.append(f"Not run: {not_there(missing)}.")
    return lines


def not_there(files: list[str]) -> str:
    return f"there is no {words([f'`{name}*.json`' for name in dict.fromkeys(files)], 'or')}"


def summary_lines(answers: list[Answer]) -> list[str]:
    """How many comparisons hold, and what each section found."""
    verdicts = [each.verdict for answer in answers for _, each, _ in answer.differences]
    counts = [f"{verdicts.count(key)} {told}" for key, told in COUNTED.items() if key in verdicts]
    lines = [f"Of {len(verdicts)} comparisons {words(counts)}."] if verdicts else ["No comparison was run."]
    for answer in answers:
        said = " ".join(answer.sentences()) or "not run."
        lines.append(f"- **{answer.section.title.partition(':')[0]}**: {said}")
    return [lines[0], "\n".join(lines[1:])]


def ran_lines(results: dict[Path, dict]) -> list[str]:
    """The commands and versions behind the files; equal versions stand once."""
    versions: dict[str, list[str]] = {}
    for file, result in results.items():
        told = ", ".join(f"{what} {which}" for what, which in result.get("versions", {}).items() if which is not None)
        versions.setdefault(told, []).append(f"`{file.stem}`")
    commands = "\n".join(f"{result['command']}" for result in results.values() if "command" in result)
    lines = ["## How it was run", f"```\n{commands}\n```"]
    return lines + [f"{words(files)}: {told}." for told, files in versions.items() if told]


def write_results_page(
    markdown: str | Path,
    figures: str | Path,
    title: str,
    results: dict[Path, dict],
    costs: dict | None,
    media: list[dict],
) -> list[Path]:
    """Write the page, and its figures into the folder `figures`; the files that were written.

    results: of probes and fine-tunings by file. costs: content of costs.json, or None. media: of `ledger_rows`.
    """
    markdown, figures = Path(markdown), Path(figures)
    answers = [Answer(section, results) for section in SECTIONS]
    drawn = {figures / f"{answer.section.figure}.png": answer.figure() for answer in answers if answer.section.figure}
    folders = dict.fromkeys(os.path.relpath(file.parent, markdown.parent) for file in results)
    where = words([f"[{folder}]({folder})" for folder in folders])
    blocks = [
        f"# {title}",
        f"Written by `toto report --markdown` from the JSON files in {where}; do not edit.",
        *summary_lines(answers),
        READING,
        "## What was trained, and what it cost",
        *(costs_lines(costs) if costs else ["Not run: there is no `costs.json`."]),
    ]
    told: set[str] = set()
    for answer in answers:
        file = figures / f"{answer.section.figure}.png"
        image = os.path.relpath(file, markdown.parent) if drawn.get(file) is not None else None
        blocks += section_lines(answer, image, told)
    blocks += [
        "## Media seen",
        "What each model was trained on before it was probed or fine-tuned. A result on test media that its model "
        "saw ends this report, so there is none here. Read by probes: splits that heads also trained on, which is no "
        "fault.",
        table(MEDIA_HEAD, [media_cells(row) for row in media]),
        *ran_lines(results),
    ]
    markdown.parent.mkdir(parents=True, exist_ok=True)
    figures.mkdir(parents=True, exist_ok=True)
    drawn = {file: figure for file, figure in drawn.items() if figure is not None}
    for file, figure in drawn.items():
        figure.savefig(file, dpi=110, metadata={"Software": None})
    markdown.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return [markdown, *drawn]
