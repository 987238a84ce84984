"""Made-up result files of a study, with predictions that are right as often as wanted."""

import json

import numpy as np

from evaluation.metrics import balanced_accuracy
from training.scores import wilson_interval

N, CLASSES = 200, 4
TRUE = np.arange(N) % CLASSES


def predictions(accuracy, shift=0):
    """Right for the first share of the items, counted from item `shift` on."""
    wrong = np.roll(np.arange(N) >= round(accuracy * N), shift)
    return np.where(wrong, (TRUE + 1) % CLASSES, TRUE)


def row(predicted, val_accuracy, **more):
    right = int((predicted == TRUE).sum())
    scores = {"accuracy": right / N, "balanced_accuracy": balanced_accuracy(predicted, TRUE)}
    return more | scores | {"val_accuracy": val_accuracy, "ci95": wilson_interval(right, N)}


def write_probe(file, best, floors=(), heads=("linear", "attention"), keep=True, shift=0, **result):
    """A probe of layers 0..4 whose accuracy peaks at layer 2 of the first head; floors: {baseline: accuracy}."""
    rows, kept = [], {}
    for layer in range(5):
        for k, head in enumerate(heads):
            accuracy = best - 0.1 * abs(layer - 2) - 0.05 * k
            predicted = predictions(accuracy, shift)
            rows.append(row(predicted, accuracy, layer=layer, head=head, lr=0.1))
            kept[layer, head] = predicted
    chosen = max(rows, key=lambda each: each["val_accuracy"])
    baselines = {who: row(predictions(each), each, head="linear") for who, each in dict(floors).items()}
    task = {"classes": CLASSES, "chance": 1 / CLASSES, "majority": 1 / CLASSES, "layers": rows, "best": chosen}
    task["baselines"] = baselines
    if keep:
        selected = {f"head={head}": (2, head) for head in heads} | {
            "layer=0": (0, heads[0]),
            "layer=4": (4, heads[0]),
        }
        task["predictions"] = {
            "items": [f"test[{number}]" for number in range(N)],
            "label": TRUE.tolist(),
            "predicted": kept[2, heads[0]].tolist(),
            "baselines": {who: predictions(each).tolist() for who, each in dict(floors).items()},
            "selected": {
                what: {"layer": at[0], "head": at[1], "predicted": kept[at].tolist()} for what, at in selected.items()
            },
        }
    splits = {part: {"split": part} for part in ("train", "validation", "test")}
    content = {
        "command": f"toto probe --output {file.name}",
        "model": f"runs/{file.stem}",
        "media": [],
        "depth": 4,
        "data": {"dataset": "org/cats", "num_frames": 1, "resolution": 64, "splits": splits},
        "versions": {"torch": "2.13"},
        "label": "label",
        **task,
        "n_train": 1000,
        "n_validation": 100,
        "n_test": N,
        "tasks": {"label": task},
    }
    file.write_text(json.dumps(content | result))
    return file


def write_tuned(file, accuracy, mode, keep=True, shift=0):
    """A result of `toto finetune` with its predictions.json inside."""
    predicted = predictions(accuracy, shift)
    correct = int((predicted == TRUE).sum())
    splits = {part: {"name": f"{part}: {part}", "clips": N} for part in ("train", "validation", "test")}
    content = {
        "command": "toto finetune",
        "model": "runs/before",
        "media": None,
        "checkpoint": "runs/tuned/checkpoints/step_000010",
        "data": {"dataset": "org/cats", "num_frames": 1, "attention_mode": mode, "splits": splits},
        "versions": {"torch": "2.13"},
        "best": {"layer": 4, "head": "mean", "accuracy": correct / N, "correct": correct, "val_accuracy": 0.5},
        "n_test": N,
    }
    if keep:
        names = [f"test[{number}]" for number in range(N)]
        kept = {"sources": names, "labels": TRUE.tolist(), "predictions": predicted.tolist()}
        content["predictions"] = kept
    file.write_text(json.dumps(content))
    return file
