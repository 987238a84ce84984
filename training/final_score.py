"""The test of a fine-tuning, once, of what was best on validation: RUN/results.json, and every prediction beside it."""

from __future__ import annotations

import json
from pathlib import Path

from modeling_toto import TotoConfig
from tokenization.parts import write_whole

from .classifier import load_classifier
from .classify import score
from .device import versions
from .finetune_args import FinetuneModelArgs, LabelledArgs
from .labelled import Clips
from .resume import read_recipe
from .scores import accuracy_interval, per_class_accuracy


def report(
    accelerator,
    run: Path,
    chosen: dict,
    splits: dict[str, Clips],
    classes: list[str],
    column: str,
    model_args: FinetuneModelArgs,
    data: LabelledArgs,
    seed: int,
    batch_size: int,
    facts: dict,
) -> Path:
    """Scores the checkpoint of the step that was chosen, and writes both files; its folder.

    facts: what the result says of the run besides: the command as it was typed, the media that the model had seen.

    Raises:
        FileNotFoundError: the checkpoint is gone.
    """
    best = run / "checkpoints" / f"step_{chosen['step']:06d}"
    if not best.is_dir():
        raise FileNotFoundError(f"{best}, which was best on validation, is gone, so nothing can be tested.")
    test = splits["test"]
    config = TotoConfig.from_pretrained(best)
    model = load_classifier(str(best), config, test.kind).to(accelerator.device)
    found = score(accelerator, model, test, batch_size)
    if not accelerator.is_main_process:
        return best
    accuracy = found["correct"] / found["total"]
    right = found["predictions"] == test.labels
    by_class = {row["class"]: row["accuracy"] for row in per_class_accuracy(found["predictions"], test.labels, classes)}
    ci95 = accuracy_interval(right, test.sources)
    head = {"step": chosen["step"], "layer": model.feature_layer, "head": config.pooler}
    scores = {"val_accuracy": chosen["val_accuracy"], "accuracy": accuracy, "ci95": ci95, "loss": found["loss"]}
    result = {
        **facts,
        "settings": read_recipe(run),
        "model": model_args.model,
        "checkpoint": str(best),
        "data": {
            "dataset": data.dataset,
            "label_column": column,
            "kind": test.kind,
            "num_frames": 1 if test.kind == "image" else config.num_frames,
            "attention_mode": config.attention_mode,
            "splits": {part: {"name": clips.name, "clips": len(clips)} for part, clips in splits.items()},
            "skipped": {part: clips.skipped for part, clips in splits.items() if clips.skipped},
        },
        "versions": versions(accelerator.device),
        "seeds": [seed],
        "best": head | scores | {"correct": found["correct"], "accuracy_by_class": by_class},
        "n_test": found["total"],
    }
    rows = {"sources": test.sources, "labels": test.labels.tolist(), "predictions": found["predictions"].tolist()}
    for name, content in (("results.json", result), ("predictions.json", {"classes": classes} | rows)):
        text = json.dumps(content, indent=1) + "\n"
        write_whole(run / name, lambda path, text=text: path.write_text(text))
    print(
        f"test accuracy {100 * accuracy:.2f} % ({found['correct']} of {found['total']}; 95 % interval "
        f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}), of step {chosen['step']}, "
        f"which was best on validation ({100 * chosen['val_accuracy']:.2f} %)"
    )
    return best
