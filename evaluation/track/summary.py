"""Scores of all sequences together: means over objects, intervals over sequences, the best layer and its floors."""

from __future__ import annotations

import numpy as np

from evaluation.metrics import verdict
from evaluation.results import Versus
from evaluation.track.results import BestLayer, FloorScore, LayerScore, ObjectScore, Score, SequenceScores
from training.scores import bootstrap_interval, exact_interval

PLAIN = ("copy", "position", "patches")  # baselines below the model, with a single entry


def of_objects(sequences: list[SequenceScores], kind: str) -> list[ObjectScore]:
    """The scores of all objects by one kind of features."""
    return [each for sequence in sequences for each in sequence.scores[kind]]


def interval(sequences: list[SequenceScores], gains: np.ndarray) -> list[float] | None:
    """95 % bootstrap interval of the mean of `gains`, one per object; sequences are drawn, with all their objects."""
    if len(sequences) < 2:
        return None
    groups = [sequence.name for sequence in sequences for _ in next(iter(sequence.scores.values()))]
    return bootstrap_interval(gains, groups=groups)


def paired_interval(sequences: list[SequenceScores], gains: np.ndarray) -> list[float]:
    """As `interval`, of differences; [-1, 1] for a single sequence.

    Few sequences make a bootstrap too narrow: two that agree would seem certain. So it includes 0 unless the sign test
    of the sequences excludes it, which takes at least six of them.
    """
    found = interval(sequences, gains)
    if found is None:
        return [-1.0, 1.0]
    ends = np.cumsum([len(next(iter(sequence.scores.values()))) for sequence in sequences])[:-1]
    leads = np.array([part.sum() for part in np.split(gains, ends)])
    low, high = exact_interval(int((leads > 0).sum()), max(1, int((leads != 0).sum())))
    return found if low > 0.5 or high < 0.5 else [min(found[0], 0.0), max(found[1], 0.0)]


def mean_scores(objects: list[ObjectScore]) -> dict[str, float]:
    """Means over objects, as the official evaluation takes them."""
    j, f = (float(np.mean([getattr(each, name) for each in objects])) for name in "jf")
    return {"jf": (j + f) / 2, "j": j, "f": f}


def score(sequences: list[SequenceScores], objects: list[ObjectScore]) -> Score:
    """The score of one entry per object, in the order of the sequences."""
    return Score(**mean_scores(objects), ci95=interval(sequences, np.array([each.jf for each in objects])))


def layer_scores(sequences: list[SequenceScores], layers: list[int], name: str) -> list[LayerScore]:
    """name: "layer" or "untrained"."""
    found = []
    for layer in layers:
        objects = of_objects(sequences, f"{name} {layer}")
        rest = {
            key: float(np.mean([getattr(each, key) for each in objects]))
            for key in ("j_recall", "j_decay", "f_recall", "f_decay")
        }
        found.append(LayerScore(layer=layer, **_plain(score(sequences, objects)), **rest))
    return found


def _plain(found: Score) -> dict:
    """The fields of a score, to make one of a subclass."""
    return {"jf": found.jf, "j": found.j, "f": found.f, "ci95": found.ci95}


def baselines(sequences: list[SequenceScores], layers: list[int]) -> dict[str, FloorScore]:
    """All baselines that were run; "layer 0" if it was."""
    kinds, found = sequences[0].scores, {}
    for name in (*PLAIN, "layer 0"):
        if name in kinds:
            found[name] = FloorScore(**_plain(score(sequences, of_objects(sequences, name))))
    if f"untrained {layers[0]}" in kinds:
        rows = layer_scores(sequences, layers, "untrained")
        top = max(rows, key=lambda row: row.jf)
        found["untrained"] = FloorScore(**_plain(top), layer=top.layer, layers=rows)
    if "ceiling" in kinds:
        found["ceiling"] = FloorScore(**_plain(score(sequences, of_objects(sequences, "ceiling"))))
    return found


def best_layer(sequences: list[SequenceScores], rows: list[LayerScore], floors: dict[str, FloorScore]) -> BestLayer:
    """The layer with the largest jf, against each baseline."""
    top = max(rows, key=lambda row: row.jf)
    mine = np.array([each.jf for each in of_objects(sequences, f"layer {top.layer}")])
    versus = {}
    for name, floor in floors.items():
        kind = name if floor.layer is None else f"untrained {floor.layer}"
        if kind == f"layer {top.layer}":
            continue
        gains = mine - [each.jf for each in of_objects(sequences, kind)]
        ci95 = paired_interval(sequences, gains)
        versus[name] = Versus(difference=float(gains.mean()), ci95=ci95, verdict=verdict(ci95))
    return BestLayer(layer=top.layer, **_plain(top), versus=versus, chosen_on_others=chosen_on_others(sequences, rows))


def chosen_on_others(sequences: list[SequenceScores], rows: list[LayerScore]) -> Score | None:
    """The score if each sequence takes the layer that is best on all others."""
    if len(sequences) < 2:
        return None
    found = []
    for left_out in sequences:
        others = [each for each in sequences if each is not left_out]
        means = {row.layer: mean_scores(of_objects(others, f"layer {row.layer}"))["jf"] for row in rows}
        found += left_out.scores[f"layer {max(means, key=means.get)}"]
    return score(sequences, found)
