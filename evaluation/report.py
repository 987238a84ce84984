"""`toto report`: results and runs -> one page, HTML or Markdown, that says what holds and what fails."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.claims import NATS, SQUARED_ERROR, Generation, Probe, Run, controls

COSTS = "costs.json"  # what the models of a study cost, beside its results


@dataclass(frozen=True)
class ReportArgs:
    output: str = field(default="report.html", metadata={"help": "Page to write (.html)."})
    markdown: str | None = field(
        default=None,
        metadata={"help": "Write the page of the probing study (.md) from --results, in place of --output."},
    )
    figures: str | None = field(
        default=None, metadata={"help": "Folder for the figures (.png) of --markdown; beside it by default."}
    )
    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Result files (.json) of `toto probe` and `toto finetune`, or folders of them."},
    )
    runs: list[str] = field(default_factory=list, metadata={"help": "Run folders of `toto pretrain`."})
    generations: list[str] = field(
        default_factory=list, metadata={"help": "Folders written by `toto generate`, or single sheets (.png)."}
    )
    title: str | None = field(
        default=None, metadata={"help": "Title of the page (default: Toto report; Results of --markdown)."}
    )

    def __post_init__(self):
        if not (self.results or self.runs or self.generations):
            raise ValueError("there is nothing to report: give --results, --runs or --generations.")
        if self.markdown is not None and (self.runs or self.generations or not self.results):
            raise ValueError("--markdown is written from result files: give it --results alone.")
        if self.figures is not None and self.markdown is None:
            raise ValueError("--figures is where the pictures of --markdown go; --output holds its own.")


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
    from training.scores import wilson_interval

    return {"ci95": wilson_interval(round(row["accuracy"] * n_test), n_test)} | row


def read_results(places: list[str]) -> tuple[dict[Path, dict], dict[Path, dict]]:
    """Results of `toto probe` and of `toto finetune`; JSON of another kind is named on stderr and passed over."""
    probed, tuned = {}, {}
    for file in find(places, "*.json", "result file"):
        result = read_json(file)
        keys = set(result) if isinstance(result, dict) else set()
        if {"layers", "best", "n_test"} <= keys:
            probed[file] = result
        elif {"checkpoint", "best", "n_test"} <= keys:
            tuned[file] = result
        else:
            if file.name != COSTS:
                print(f"{file}: no result of toto probe or toto finetune, passed over", file=sys.stderr)
    return probed, tuned


def read_probes(places: list[str]) -> list[Probe]:
    """All probe results of files and folders, as `make_probes` reads them."""
    return make_probes(read_results(places)[0])


def make_probes(results: dict[Path, dict]) -> list[Probe]:
    """Probe results with names that differ and an interval on every accuracy; a control says so in its name."""
    probes = []
    names = short_names([result.get("model", "model") for result in results.values()], [file.stem for file in results])
    for name, (file, result) in zip(names, results.items(), strict=True):
        name = f"{name}, control" if controls(result) else name
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


def check_media(results: dict[str, dict]) -> list[dict]:
    """The rows of the ledger of all models that results, by name, are of (`ledger.ledger_rows`).

    Raises:
        ValueError: a result on test media that its model was trained on.
    """
    from evaluation.ledger import ledger_rows, media_of_result, media_tested, require_no_overlap

    models = list(dict.fromkeys(result.get("model", name) for name, result in results.items()))
    seen, tested = {}, {}
    for name, result in results.items():
        model = result.get("model", name)
        seen[model] = media_of_result(result) if "model" in result else None
        if seen[model] is not None:
            parts = media_tested(result)
            require_no_overlap(f"The model of {name} ({model})", seen[model], parts)
            tested[model] = tested.get(model, []) + parts
    names = dict(zip(models, short_names(models, models), strict=True))
    return ledger_rows({names[m]: seen[m] for m in models}, {names[m]: parts for m, parts in tested.items()})


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
    recipe, versions = path / "recipe.yaml", path / "versions.json"
    predictors = run_losses(path) if recipe.is_file() else None
    unit = unit_of_loss(path) if recipe.is_file() else NATS
    about = read_json(versions) if versions.is_file() else {}
    return Run(path.resolve().name, path, rows, predictors, about, unit)


def unit_of_loss(run: Path) -> str:
    """Nats, but of a model that regresses the pixels of patches their squared error."""
    from modeling_toto import TotoConfig
    from training.resume import read_recipe

    recipe = read_recipe(run)
    fields = recipe.get("config") or {}
    fields = json.loads(fields) if isinstance(fields, str) else fields
    target = fields.get("prediction_target", TotoConfig.prediction_target)
    return SQUARED_ERROR if recipe.get("architecture") == "patches" and target == "patch" else NATS


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
    probed, finetuned = read_results(args.results) if args.results else ({}, {})
    media = check_media({file.stem: result for file, result in (probed | finetuned).items()})
    if args.markdown is not None:
        from evaluation.results_page import write_results_page

        costs = [file for file in find(args.results, "*.json", "result file") if file.name == COSTS]
        results = dict(sorted((probed | finetuned).items()))
        figures = args.figures or Path(args.markdown).parent
        told = read_json(costs[0]) if costs else None
        for file in write_results_page(args.markdown, figures, args.title or "Results", results, told, media):
            print(f"wrote {file}")
        return
    probes = make_probes(probed)
    tuned = {file.stem: result for file, result in finetuned.items()}
    comparisons = [c for run in runs for c in compare_run(run)] + [c for p in probes for c in compare_probe(p)]
    page = render(
        args.title or "Toto report", runs, generations, probes, comparisons, command_line("report", argv), tuned, media
    )
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
