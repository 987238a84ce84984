"""Reads results, runs and generated clips from their files, for reports, comparisons and studies."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.results import GenerationResult, ProbeResult, Row, TaskResult
from tokenization.sources.named import without
from training.results import FinetuneResult

NATS, SQUARED_ERROR = "nats per code token", "mean squared error per patch"
# Baselines of `toto probe`, as figures, tables and sentences name them.
AGAINST = {
    "untrained": "the untrained model",
    "pixels": "raw pixels",
    "random_filters": "random filters",
    "histogram": "the histogram of codes",
    "hog": "HOG",
}


@dataclass(frozen=True)
class Probe:
    """A result of `toto probe`.

    name: of the model; short, and different from the others'. tasks: label -> task, with an interval on every accuracy.
    """

    name: str
    file: Path
    result: ProbeResult
    tasks: dict[str, TaskResult]

    @property
    def n_test(self) -> int:
        return self.result.n_test


@dataclass(frozen=True)
class Run:
    """A pre-training run. rows: of metrics.jsonl. predictors: of `predictors.run_losses`. unit: of its losses."""

    name: str
    folder: Path
    rows: list[dict]
    predictors: dict | None
    versions: dict
    unit: str = NATS

    @property
    def val_loss(self) -> float | None:
        """The last validation loss; not the lowest, which would be chosen on validation."""
        return next((row["val_loss"] for row in reversed(self.rows) if row.get("val_loss") is not None), None)


@dataclass(frozen=True)
class Generation:
    """A continued clip. sheet: PNG. about: the JSON file of the same name, or None."""

    sheet: Path
    about: GenerationResult | None


def read_json(file: Path) -> dict:
    """The content of a JSON file. Raises ValueError if it is not valid JSON."""
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not a valid JSON file ({error}); write it again, or leave it out.") from error


def find(places: list[str], pattern: str, what: str) -> list[Path]:
    """Files named directly, and matching files in folders. Raises FileNotFoundError for a path that does not exist."""
    found = []
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"There is no {what} {place}; check the path.")
        inside = sorted(place.glob(pattern)) if place.is_dir() else [place]
        if not inside:
            raise FileNotFoundError(f"The folder {place} contains no {what} ({pattern}); name another folder.")
        found += inside
    return found


def short_names(models: list[str], fallbacks: list[str]) -> list[str]:
    """The last part of each model's path; where two are the same, followed by the result's own name."""
    names = [Path(model).name or model for model in models]
    return [
        name if names.count(name) == 1 else f"{name} ({fallback})"
        for name, fallback in zip(names, fallbacks, strict=True)
    ]


def controls(result: ProbeResult) -> list[str]:
    """What a probe changed on purpose, in words: its accuracy is not that of the model as it was trained."""
    order = (result.data and result.data.frame_order) or "ordered"
    found = [] if result.control is None else [result.control]
    if order != "ordered":
        found.append("the middle frame only" if order == "middle" else f"frames {order}")
    return found


def percent(accuracy: float, ci95: list[float]) -> str:
    """An accuracy and its 95 % interval, as text."""
    low, high = ci95
    return f"{100 * accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def with_interval(row: Row, n_test: int) -> Row:
    """The row with its Wilson interval, for files that contain an accuracy only."""
    from training.scores import wilson_interval

    if row.ci95 is not None:
        return row
    return replace(row, ci95=wilson_interval(round(row.accuracy * n_test), n_test), lacks=row.lacks - {"ci95"})


def read_results(places: list[str]) -> tuple[dict[Path, ProbeResult], dict[Path, FinetuneResult]]:
    """Results of `toto probe` and of `toto finetune`, by file. Other JSON files are skipped, and named on stderr.

    Raises:
        ValueError: a result that lacks what every version writes.
    """
    probed, tuned = {}, {}
    for file in find(places, "*.json", "result file"):
        content = read_json(file)
        keys = set(content) if isinstance(content, dict) else set()
        try:
            if {"layers", "best", "n_test"} <= keys:
                probed[file] = ProbeResult.from_json(content)
            elif {"checkpoint", "best", "n_test"} <= keys:
                tuned[file] = FinetuneResult.from_json(content)
            else:
                print(f"{file} is not a result of toto probe or toto finetune: skipped", file=sys.stderr)
        except ValueError as error:
            raise ValueError(f"{file} is not a complete result: {error}") from error
    return probed, tuned


def read_probes(places: list[str]) -> list[Probe]:
    """All probe results of files and folders, as `make_probes` returns them."""
    return make_probes(read_results(places)[0])


def make_probes(results: dict[Path, ProbeResult]) -> list[Probe]:
    """Probe results with names that differ and an interval on every accuracy; the name of a control says so."""
    names = short_names([result.model or "model" for result in results.values()], [file.stem for file in results])
    return [
        Probe(
            f"{name}, control" if controls(result) else name,
            file,
            result,
            {label: _with_intervals(task, result.n_test) for label, task in result.tasks.items()},
        )
        for name, (file, result) in zip(names, results.items(), strict=True)
    ]


def _with_intervals(task: TaskResult, n_test: int) -> TaskResult:
    def rows(of: list[Row] | None) -> list[Row] | None:
        return of and [with_interval(row, n_test) for row in of]

    baselines = {
        who: replace(with_interval(row, n_test), layers=rows(row.layers)) for who, row in (task.baselines or {}).items()
    }
    return replace(task, layers=rows(task.layers), best=with_interval(task.best, n_test), baselines=baselines)


def read_run(folder: str) -> Run:
    """A run folder, with the simple predictors of its shards (counted once, then kept in the folder)."""
    from evaluation.predictors import run_losses

    path = Path(folder)
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: {without(folder, 'metrics.jsonl')}")
    rows = []
    for line in metrics.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the torn last line of a run that was killed, or is being written
            continue
    if not rows:
        raise ValueError(f"{metrics} has no row yet; report the run after it has logged a step.")
    recipe, versions = path / "recipe.yaml", path / "versions.json"
    predictors = run_losses(path) if recipe.is_file() else None
    unit = unit_of_loss(path) if recipe.is_file() else NATS
    about = read_json(versions) if versions.is_file() else {}
    return Run(path.resolve().name, path, rows, predictors, about, unit)


def unit_of_loss(run: Path) -> str:
    """Nats; for a model that regresses the pixels of patches, their squared error."""
    from modeling_toto import TotoConfig
    from training.flags import read_recipe

    recipe = read_recipe(run)
    fields = recipe.get("config") or {}
    fields = json.loads(fields) if isinstance(fields, str) else fields
    target = fields.get("prediction_target", TotoConfig.prediction_target)
    return SQUARED_ERROR if recipe.get("architecture") == "patches" and target == "patch" else NATS


def read_loss_maps(run: Path) -> dict | None:
    """RUN/loss_maps.json of `training.engine.progress.write_loss_maps`, or None if the run has not validated."""
    file = run / "loss_maps.json"
    return json.loads(file.read_text()) if file.is_file() else None


def read_generations(places: list[str]) -> list[Generation]:
    """Sheets of `toto generate`, each with the JSON file of the same name if there is one."""
    sheets = find(places, "*.png", "sheet of frames")
    about = [sheet.with_suffix(".json") for sheet in sheets]
    return [
        Generation(s, GenerationResult.from_json(read_json(a)) if a.is_file() else None)
        for s, a in zip(sheets, about, strict=True)
    ]
