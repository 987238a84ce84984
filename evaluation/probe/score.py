"""Scores of trained heads on the test items: a row for each layer and head, the chosen one, and its baselines."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import torch

from evaluation.heads.selection import Chosen
from evaluation.metrics import BalancedAccuracy, Top1Accuracy, confusion_matrix, paired_difference, verdict
from evaluation.results import Baseline, Best, Predictions, Row, Selected, TaskResult, Versus
from tokenization.sources.labelled import group_of
from training.scores import accuracy_interval, grid_cells, grid_l1, per_class_accuracy, top_accuracy

MOST_CONFUSED = 100  # classes whose confusion matrix is kept in the result


@dataclass(frozen=True)
class Trained:
    """The heads of one backbone. layers: their numbers, in ascending order. heads: by name, of all tasks."""

    layers: list[int]
    heads: dict[str, Chosen]


@dataclass(frozen=True)
class Tested:
    """The test items that are scored: clips, or videos of several clips each.

    items: their names; without averaging, clips of one video share a name. labels: class numbers (M, tasks). groups:
    the independent unit of each, (M,), which intervals resample as a whole: its recording, or its video. numbers: the
    item of each test clip, (N,); None where clips are scored and only their predicted classes are needed.
    """

    items: list[str]
    labels: torch.Tensor
    groups: list[str]
    numbers: torch.Tensor | None = None

    @classmethod
    def of_clips(
        cls,
        sources: list[str],
        labels: torch.Tensor,
        average: bool,
        ranked: bool = False,
        pattern: str | None = None,
    ) -> Tested:
        """Test clips by their sources (N,) and labels (N, tasks).

        average: score the sources, not the clips. ranked: probabilities of classes are needed as well. pattern:
        regular expression of the groups in the names (`--group_by`); a name without it is a group of its own.
        """
        items = list(dict.fromkeys(sources)) if average else sources
        groups = [group_of(name, pattern) if pattern and re.search(pattern, name) else name for name in items]
        if not average:
            return cls(items, labels, groups, torch.arange(len(sources)) if ranked else None)
        places = {name: place for place, name in enumerate(items)}
        numbers = torch.tensor([places[name] for name in sources])
        return cls(items, torch.empty_like(labels[: len(items)]).index_copy_(0, numbers, labels), groups, numbers)


@dataclass(frozen=True)
class Scored:
    """One label of one backbone.

    rows: of all layers and heads. best: the row chosen on validation. predictions: of that row, (M,).
    """

    rows: list[Row]
    best: Row
    predictions: np.ndarray
    selected: dict[str, Selected]


def score(
    trained: Trained, task: int, references: np.ndarray, groups: list[str], cells: np.ndarray | None = None
) -> Scored:
    """Scores of all layers and heads for one label.

    task: its number. references, groups: of what is tested, (M,). cells: of classes that are cells of a grid, (C, 2).

    `Scored.selected` has what validation chooses among the rows of each head ("head=linear") and of the first and the
    last layer ("layer=0"), so that these can be compared on the same items.
    """
    rows, keys, predictions = [], [], []
    for index, layer in enumerate(trained.layers):
        for head, bank in trained.heads.items():
            predicted = bank.test_predictions[index, task].numpy()
            setting = {key: float(f"{value:.6g}") for key, value in bank.setting(index, task).items()}
            row = Row(
                layer=layer,
                head=head,
                **setting,
                val_accuracy=bank.val_accuracy[index, task].item(),
                **Top1Accuracy().compute(predictions=predicted, references=references),
                **BalancedAccuracy().compute(predictions=predicted, references=references),
                ci95=accuracy_interval(predicted == references, groups),
                **_on_grid(predicted, bank.test_probabilities, (index, task), references, cells),
            )
            rows.append(row)
            keys.append(bank.rank(index, task))
            predictions.append(predicted)
    best = max(range(len(rows)), key=keys.__getitem__)
    first, last = trained.layers[0], trained.layers[-1]
    selected = {}
    for key, value in (*(("head", head) for head in trained.heads), ("layer", first), ("layer", last)):
        k = max((k for k, row in enumerate(rows) if getattr(row, key) == value), key=keys.__getitem__)
        chosen = Selected(layer=rows[k].layer, head=rows[k].head, predicted=predictions[k].tolist())
        selected[f"{key}={value}"] = chosen
    return Scored(rows, rows[best], predictions[best], selected)


def _on_grid(predicted, probabilities, place: tuple[int, int], references, cells) -> dict[str, float]:
    """The fields of a `Row` for the cells of a grid; empty for other classes."""
    if cells is None or probabilities is None:
        return {}
    likely = probabilities[place][:, : len(cells)].numpy()
    return {"top5": top_accuracy(likely, references), "grid_l1": grid_l1(predicted, references, cells)}


def compare(
    predictions: np.ndarray, others: dict[str, np.ndarray], references: np.ndarray, groups: list[str], seed: int
) -> dict[str, Versus]:
    """Predictions minus those of each baseline on the same items. others: by baseline. groups: as in `Tested`."""
    groups = groups if len(set(groups)) < len(groups) else None
    result = {}
    for name, other in others.items():
        found = paired_difference(predictions, other, references, seed, groups=groups)
        result[name] = Versus(**found, verdict=verdict(found["ci95"]))
    return result


def score_task(
    trained: dict[str, Trained], task: int, names: list[str], tested: Tested, commonest: int, seed: int
) -> TaskResult:
    """One label of "model" and of the baselines, which are the other entries of `trained`.

    task: number of the label. names: of its classes. commonest: the class that most training clips have. seed: of the
    intervals of differences.
    """
    references = tested.labels[:, task].numpy()
    cells = grid_cells(names)
    found = {who: score(each, task, references, tested.groups, cells) for who, each in trained.items()}
    model = found.pop("model")
    others = {who: each.predictions for who, each in found.items()}
    layer_0 = {"layer 0": np.array(model.selected["layer=0"].predicted)} if _has_deeper_best(model) else {}
    versus = compare(model.predictions, others | layer_0, references, tested.groups, seed)
    is_small = len(names) <= MOST_CONFUSED
    return TaskResult(
        classes=len(names),
        chance=1 / len(names),
        majority=float((tested.labels[:, task] == commonest).float().mean()),
        layers=model.rows,
        best=Best(**vars(model.best), versus=versus),
        baselines={who: _baseline(each, who == "untrained") for who, each in found.items()},
        per_class=per_class_accuracy(model.predictions, references, names),
        confusion=confusion_matrix(model.predictions, references, len(names)).tolist() if is_small else None,
        predictions=Predictions(
            items=tested.items,
            groups=tested.groups if tested.groups != tested.items else None,
            label=references.tolist(),
            predicted=model.predictions.tolist(),
            baselines={who: other.tolist() for who, other in others.items()},
            selected=model.selected,
        ),
    )


def _has_deeper_best(model: Scored) -> bool:
    """Whether layer 0, the embeddings before any block, was tried and another layer was chosen."""
    return model.best.layer != 0 and "layer=0" in model.selected


def _baseline(scored: Scored, has_layers: bool) -> Baseline:
    """has_layers: whether it has the layers of the model; all its rows are then kept."""
    best = Baseline(**vars(scored.best))
    return replace(best, layers=scored.rows) if has_layers else replace(best, layer=None)


def widest_margin(tasks: dict[str, TaskResult]) -> str:
    """The label whose chosen row is furthest above its best baseline (else chance) on validation."""

    def margin(label: str) -> float:
        task = tasks[label]
        floor = [row.val_accuracy for row in task.baselines.values()] or [task.chance]
        return task.best.val_accuracy - max(floor)

    return max(tasks, key=margin)
