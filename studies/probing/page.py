"""Write docs/results.md, the page of the probing study, from committed result files and nothing else.

    python -m studies.probing.page

The same files give the same bytes. No number is written in this file or in `sections`: all come from the results.
"""

from __future__ import annotations

import os
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.report.comparisons import words
from evaluation.report.page import MEDIA_HEAD, media_cells
from studies.probing.answers import Answer
from studies.probing.rows import NO_DIFFERENCE, Result, files_of
from studies.probing.sections import COSTS, IGPT, IMAGES, MAE, SECTIONS
from tokenization.terminal.command_line import parse_flags

RESULTS, PAGE = "docs/studies/probing", "docs/results.md"
COSTS_FILE = "costs.json"  # what the models of the study cost, next to its results
READING = (
    "How to read the numbers. The value of a model is the mean over its pre-training seeds; the value of each seed is "
    "listed next to it. Brackets are 95 % intervals over test items (over whole videos, if one gave several clips), "
    "resampled for all seeds at once. A difference is paired if both sides kept their predictions of the same items; "
    "the tables say where it is not. The intervals hold for the models that were trained. They do not cover the "
    "choice of seed: a few seeds are too few for an interval of their own, so their values are shown, and a verdict "
    "says where the seeds of both sides overlap. A comparison *holds* if its whole interval is above zero and *fails* "
    "if it is below; otherwise there is *no significant difference*. Layer, head and learning rate are chosen on "
    "validation, for each seed."
)
# The models that are compared on images alone, as costs.json and the sections name them.
PEERS = {"images_0": IMAGES, "mae_0": MAE, "igpt_0": IGPT}
# verdict -> of one comparison, of several
COUNTED = {
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    NO_DIFFERENCE: ("shows no significant difference", "show no significant difference"),
    "no interval": ("has no interval", "have no interval"),
}


@dataclass(frozen=True)
class PageArgs:
    """Flags."""

    results: list[str] = field(
        default_factory=lambda: [RESULTS],
        metadata={"help": "result files (.json) of `toto probe` and `toto finetune`, or folders of them"},
    )
    output: str = field(default=PAGE, metadata={"help": "page to write (.md)"})
    figures: str | None = field(default=None, metadata={"help": "folder for the figures (.png); that of --results"})
    title: str = field(default="Results", metadata={"help": "title of the page"})


def wrapped(block: str) -> str:
    """A paragraph or list wrapped at 120 characters; tables, code, headings and images as they are."""
    if block.startswith(("|", "```", "#", "![")):
        return block
    # A sign at the start of a line would begin a list, and so would a number with a full stop.
    glued = re.sub(r" (?=(?:[-+*>]|\d+[.)]) )", "\0", block)
    style = {"width": 120, "break_long_words": False, "break_on_hyphens": False}
    lines = [textwrap.fill(line, **style, subsequent_indent="  " * line.startswith("- ")) for line in glued.split("\n")]
    return "\n".join(lines).replace("\0", " ")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def costs_lines(costs: dict) -> list[str]:
    """What pre-training cost, in Markdown blocks; the cost of the tokenizer is added to every Toto.

    costs: {"models": {name: {key: number}}, "tokenizer_training_cpu_seconds": number, "steps": {step: {"cpu_seconds"}},
    "search": {model: {learning rate: validation loss}}}, all but the first optional.
    """
    spent = {step: time["cpu_seconds"] for step, time in costs.get("steps", {}).items()}
    encoding = [seconds for step, seconds in spent.items() if step.startswith("tokenize/")]
    training = costs.get("tokenizer_training_cpu_seconds")
    models = dict(costs["models"])
    for model, its in models.items():
        if its.get("kind") == "toto" and training is not None:
            models[model] = its | {"charged_cpu_seconds": its["cpu_seconds"] + training + sum(encoding)}
    columns = {key: heading for key, heading in COSTS if any(key in its for its in models.values())}
    rows = [[model, *(cost(key, its.get(key)) for key in columns)] for model, its in models.items()]
    lines = [table(["model", *columns.values()], rows)]
    if training is not None:
        encoded = f"{sum(encoding) / 60:,.1f}" if encoding else "none (not timed)"
        lines.append(
            'CPU minutes are those of the training steps. "Everything included" also charges a peer for the '
            f"preparation of its pictures, and every Toto for its tokens: {training / 60:,.0f} minutes for training "
            f"the tokenizer and {encoded} for encoding all media of the study, although both are done once for all "
            "Totos. FLOPs are those of the model alone, forward and backward."
        )
    lines += unequal_budgets(models)
    if costs.get("search"):
        searched = [[model, *(f"{rate}: {loss:.3f}" for rate, loss in found.items())]
                    for model, found in costs["search"].items()]  # fmt: skip
        width = max(map(len, searched))
        head = ["search of the learning rate", *["rate: validation loss"] * (width - 1)]
        lines.append(table(head, [row + [""] * (width - len(row)) for row in searched]))
        edges = [
            f"{model} ({best}, the {'lowest' if best == min(found, key=float) else 'highest'})"
            for model, found in costs["search"].items()
            if (best := min(found, key=found.__getitem__)) in (min(found, key=float), max(found, key=float))
        ]
        if edges:
            lines.append(
                f"The best rate is at an end of the range that was searched, so a better one may exist: {words(edges)}."
            )
    return lines


def unequal_budgets(models: dict[str, dict]) -> list[str]:
    """What the models that are compared on images took, if all of them are there."""
    if not all(name in models for name in PEERS):
        return []

    def of_all(key: str) -> str:
        return words([cost(key, models[name].get(key)) for name in PEERS])

    return [
        f"{words(list(PEERS.values()))} are not compared at equal budget: their steps took {of_all('cpu_seconds')} CPU "
        f"minutes and {of_all('flops')} FLOPs, on {of_all('images_seen')} images; everything included, it was "
        f"{of_all('charged_cpu_seconds')} minutes."
    ]


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


def section_lines(answer: Answer, image: str | None, known: set[str]) -> list[str]:
    """The Markdown of a section, in blocks. known: facts of files that are listed further up; grows."""
    section = answer.section
    lines = [f"## {section.title}", section.about]
    if not answer.seeds:
        return [*lines, f"Not run: {not_there([entry.files for entry in section.entries])}."]
    lines += answer.sentences()
    metric = section.metric.replace("_", " ")
    lines.append(table(["", f"{metric} [95 %]", "seeds", "chosen on validation", "n test"], answer.rows()))
    if answer.differences:
        lines.append(table(["difference", "points [95 %]", "interval", "verdict"], answer.difference_rows()))
    lines += answer.by_group()
    if image:
        lines.append(f"![Accuracy per layer: {section.title}]({image})")
        lines.append(
            "Means over seeds of the accuracies and of the bounds of their 95 % intervals over test items. A ring "
            "marks the layer with the highest mean validation accuracy. Horizontal lines: baselines and chance."
        )
    facts = [each for each in answer.facts() if each not in known]
    known.update(facts)
    lines += facts
    if missing := [each.files for each in answer.missing if not files_of(each, answer.results)]:
        lines.append(f"Not run: {not_there(missing)}.")
    return lines


def not_there(files: list[str]) -> str:
    return f"there is no {words([f'`{name}*.json`' for name in dict.fromkeys(files)], 'or')}"


def summary_lines(answers: list[Answer]) -> list[str]:
    """How many comparisons hold, and what each section found."""
    verdicts = [each.verdict for answer in answers for _, each, _ in answer.differences]
    counts = [
        f"{verdicts.count(key)} {forms[verdicts.count(key) > 1]}" for key, forms in COUNTED.items() if key in verdicts
    ]
    lines = (
        [f"Of {len(verdicts)} comparison{'s' * (len(verdicts) > 1)} {words(counts)}."]
        if verdicts
        else ["No comparison was run."]
    )
    for answer in answers:
        said = " ".join(answer.sentences()) or "not run."
        lines.append(f"- **{answer.section.title.partition(':')[0]}**: {said}")
    return [lines[0], "\n".join(lines[1:])]


def ran_lines(results: dict[Path, Result]) -> list[str]:
    """The commands and versions behind the files; equal versions are listed once."""
    versions: dict[str, list[str]] = {}
    for file, result in results.items():
        listed = ", ".join(f"{what} {which}" for what, which in (result.versions or {}).items() if which is not None)
        versions.setdefault(listed, []).append(f"`{file.stem}`")
    commands = "\n".join(result.command for result in results.values() if result.command is not None)
    lines = ["## How it was run", f"```\n{commands}\n```"]
    return lines + [f"{words(files)}: {listed}." for listed, files in versions.items() if listed]


def write_results_page(
    markdown: str | Path,
    figures: str | Path,
    title: str,
    results: dict[Path, Result],
    costs: dict | None,
    media: list[dict],
) -> list[Path]:
    """Write the page, and its figures into the folder `figures`; returns the files that were written.

    results: of probes and fine-tunings by file. costs: content of costs.json, or None. media: of `ledger_rows`.
    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError(
            "There is no result of toto probe or toto finetune among the files of --results; name a folder of them."
        )
    markdown, figures = Path(markdown), Path(figures)
    answers = [Answer(section, results) for section in SECTIONS]
    drawn = {figures / f"{answer.section.figure}.png": answer.figure() for answer in answers if answer.section.figure}
    folders = dict.fromkeys(os.path.relpath(file.parent, markdown.parent) for file in results)
    where = words([f"[{folder}]({folder})" for folder in folders])
    blocks = [
        f"# {title}",
        f"Written by `python -m studies.probing.page` from the JSON files in {where}; do not edit.",
        *summary_lines(answers),
        READING,
        "## What was trained, and what it cost",
        *(costs_lines(costs) if costs else ["Not run: there is no `costs.json`."]),
    ]
    known: set[str] = set()
    for answer in answers:
        file = figures / f"{answer.section.figure}.png"
        image = os.path.relpath(file, markdown.parent) if drawn.get(file) is not None else None
        blocks += section_lines(answer, image, known)
    blocks += [
        "## Media seen",
        "What each model was trained on before it was probed or fine-tuned. No result uses test media that its model "
        "saw; otherwise this page would not be written. The last column lists splits on which heads were trained as "
        "well, which is allowed.",
        table(MEDIA_HEAD, [media_cells(row) for row in media]),
        *ran_lines(results),
    ]
    markdown.parent.mkdir(parents=True, exist_ok=True)
    figures.mkdir(parents=True, exist_ok=True)
    drawn = {file: figure for file, figure in drawn.items() if figure is not None}
    for file, figure in drawn.items():
        figure.savefig(file, dpi=110, metadata={"Software": None})
    markdown.write_text("\n\n".join(map(wrapped, blocks)) + "\n", encoding="utf-8")
    return [markdown, *drawn]


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(PageArgs, argv, "python -m studies.probing.page", __doc__.splitlines()[0])

    from evaluation.report.leakage import check_media
    from evaluation.report.reading import find, read_json, read_results

    files = find(args.results, "*.json", "result file")
    costs = next((read_json(file) for file in files if file.name == COSTS_FILE), None)
    probed, tuned = read_results([str(file) for file in files if file.name != COSTS_FILE])
    results = dict(sorted((probed | tuned).items()))
    media = check_media({file.stem: result for file, result in (probed | tuned).items()})
    figures = args.figures or files[0].parent
    for file in write_results_page(args.output, figures, args.title, results, costs, media):
        print(f"wrote {file}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
