"""`toto report`: results and runs -> one HTML page that opens offline and says what holds and what fails."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.claims import Generation, Probe, Run


@dataclass(frozen=True)
class ReportArgs:
    output: str = field(default="report.html", metadata={"help": "Page to write (.html)."})
    results: list[str] = field(
        default_factory=list, metadata={"help": "Result files (.json) of `toto probe`, or folders of them."}
    )
    runs: list[str] = field(default_factory=list, metadata={"help": "Run folders of `toto pretrain`."})
    generations: list[str] = field(
        default_factory=list, metadata={"help": "Folders written by `toto generate`, or single sheets (.png)."}
    )
    title: str = field(default="Toto report", metadata={"help": "Title of the page."})

    def __post_init__(self):
        if not (self.results or self.runs or self.generations):
            raise ValueError("there is nothing to report: give --results, --runs or --generations.")


def read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON file ({error}); write it again, or leave it out.") from error


def find(places: list[str], pattern: str, what: str) -> list[Path]:
    """Files named directly, and those in folders that match. Raises FileNotFoundError for a place that is not there."""
    found = []
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"there is no {what} {place}.")
        inside = sorted(place.glob(pattern)) if place.is_dir() else [place]
        if not inside:
            raise FileNotFoundError(f"the folder {place} holds no {what} ({pattern}).")
        found += inside
    return found


def short_names(models: list[str], fallbacks: list[str]) -> list[str]:
    """The last part of each model's path, with the result's own name where two would be called the same."""
    names = [Path(model).name or model for model in models]
    return [
        name if names.count(name) == 1 else f"{name} ({fallback})"
        for name, fallback in zip(names, fallbacks, strict=True)
    ]


def with_interval(row: dict, n_test: int) -> dict:
    """The row with its Wilson interval, for files that hold an accuracy only."""
    from evaluation.metrics import wilson_interval

    return {"ci95": wilson_interval(round(row["accuracy"] * n_test), n_test)} | row


def read_probes(places: list[str]) -> list[Probe]:
    """All probe results of files and folders; JSON of another kind is named on stderr and passed over."""
    files, results = [], []
    for file in find(places, "*.json", "result file"):
        result = read_json(file)
        if isinstance(result, dict) and {"layers", "best", "n_test"} <= set(result):
            files.append(file)
            results.append(result)
        else:
            print(f"{file}: no result of toto probe, passed over", file=sys.stderr)
    probes = []
    names = short_names([result.get("model", "model") for result in results], [file.stem for file in files])
    for name, file, result in zip(names, files, results, strict=True):
        n_test = result["n_test"]
        tasks = {}
        for label, task in (result.get("tasks") or {result.get("label", "accuracy"): result}).items():
            baselines = {who: with_interval(row, n_test) for who, row in task.get("baselines", {}).items()}
            for row in baselines.values():
                if "layers" in row:
                    row["layers"] = [with_interval(each, n_test) for each in row["layers"]]
            rows = [with_interval(row, n_test) for row in task["layers"]]
            tasks[label] = task | {
                "layers": rows,
                "best": with_interval(task["best"], n_test),
                "baselines": baselines,
            }
        probes.append(Probe(name, file, result, tasks))
    return probes


def read_run(folder: str) -> Run:
    """A run folder, with the simple predictors of its shards (counted once, then kept in the folder)."""
    from evaluation.ngrams import run_losses

    path = Path(folder)
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it holds no metrics.jsonl.")
    rows = []
    for line in metrics.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the torn last line of a run that was killed, or is being written
            continue
    if not rows:
        raise ValueError(f"{metrics} has no row yet; report the run when it has logged a step.")
    predictors = run_losses(path) if (path / "recipe.yaml").is_file() else None
    versions = path / "versions.json"
    return Run(path.resolve().name, path, rows, predictors, read_json(versions) if versions.is_file() else {})


def read_generations(places: list[str]) -> list[Generation]:
    sheets = find(places, "*.png", "sheet of frames")
    about = [sheet.with_suffix(".json") for sheet in sheets]
    return [Generation(s, read_json(a) if a.is_file() else {}) for s, a in zip(sheets, about, strict=True)]


def main(argv: list[str] | None = None) -> None:
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(
        ReportArgs, prog="toto report", description="One HTML page: what holds, what fails, curves, frames, tables."
    )
    (args,) = parser.parse_args_into_dataclasses(argv)

    from evaluation.claims import compare_probe, compare_run, summary
    from evaluation.page import render
    from evaluation.results import command_line

    runs = [read_run(folder) for folder in args.runs]
    generations = read_generations(args.generations) if args.generations else []
    probes = read_probes(args.results) if args.results else []
    comparisons = [c for run in runs for c in compare_run(run)] + [c for p in probes for c in compare_probe(p)]
    page = render(args.title, runs, generations, probes, comparisons, command_line("report", argv))
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    for subject, sentences in summary(comparisons).items():
        for state, sentence in sentences:
            print(f"{state:<7}{subject}: {sentence}")
    print(f"wrote {output}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
