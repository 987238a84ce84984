"""The committed part of the probing study: results without this machine's folders, and the cost of each model."""

from __future__ import annotations

import json
from pathlib import Path

from studies.probing.steps import ROOT, Step, validation_loss

# Of the tokenizer that ships: 54 minutes on two cores (docs/log.md, 2026-11-23).
TOKENIZER_TRAINING_CPU_SECONDS = 54 * 60 * 2


def collect(steps: list[Step], data: Path, work: Path, output: Path) -> None:
    """Write every finished result, and costs.json, into the folder `output`.

    steps: all of the study. data, work: its folders, which the files then name DATA and WORK.
    """
    from training.publish.media_seen import media_seen, to_json

    output.mkdir(parents=True, exist_ok=True)
    files = {file.stem: file for file in sorted((work / "results").glob("*.json"))}
    files |= {run.parent.name: run for run in sorted((work / "runs").glob("finetune_*/results.json"))}
    for name, file in files.items():
        if name.startswith("cifar10_floors_"):
            continue
        result = json.loads(file.read_text())
        floors = files.get(name.replace("_mixed_", "_floors_"))
        if "_mixed_" in name and floors is not None:
            add_floors(result, json.loads(floors.read_text()))
        if "media" not in result:  # a result outlives the weights
            result["media"] = to_json(media_seen(result["model"]))
        if "tasks" in result:
            result.pop("predictions", None)  # those of its label are in tasks as well
        else:  # a fine-tuning keeps them in a file of their own
            result["predictions"] = json.loads((file.parent / "predictions.json").read_text())
        write_compact(output / f"{name}.json", without_folders(result, data, work))
    known = read_costs(output)  # of models and searches that may be on another machine
    found = without_folders(costs(steps, work), data, work)
    for model, losses in found["search"].items():
        losses = known.get("search", {}).get(model, {}) | losses
        found["search"][model] = dict(sorted(losses.items(), key=lambda row: float(row[0])))
    found |= {part: known.get(part, {}) | found[part] for part in ("models", "search", "steps")}
    write_compact(output / "costs.json", found)


def read_costs(output: Path) -> dict:
    """The costs.json of a folder of results; {} where it has none."""
    file = output / "costs.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def add_floors(result: dict, floors: dict) -> None:
    """Add the floors of another probe of the same test images to a result, in place.

    Raises:
        ValueError: the probes were tested on different images.
    """
    import numpy as np

    from evaluation.probe.score import compare

    for label, task in result["tasks"].items():
        other = floors["tasks"][label]
        kept, theirs = task["predictions"], other["predictions"]
        if (kept["items"], kept["label"]) != (theirs["items"], theirs["label"]):
            raise ValueError(f"{result['command']} and {floors['command']} are of different images; run both again.")
        predicted, references = np.array(kept["predicted"]), np.array(kept["label"])
        others = {name: np.array(theirs["baselines"][name]) for name in other["baselines"]}
        versus = compare(predicted, others, references, kept["items"], result["seeds"]["heads"])
        task["best"]["versus"] |= {name: each.to_json() for name, each in versus.items()}
        task["baselines"] |= other["baselines"]
        kept["baselines"] |= theirs["baselines"]
    result |= {key: value for key, value in result["tasks"][result["label"]].items() if key in ("best", "baselines")}
    result["floors_command"] = floors["command"]


def without_folders(result: dict, data: Path, work: Path) -> dict:
    """The same with DATA and WORK for the study's folders, and with paths of this clone relative to its root."""
    text = json.dumps(result)
    for folder, name in ((data, "DATA"), (work, "WORK")):
        text = text.replace(str(folder), name)
    return json.loads(text.replace(f"{ROOT}/", ""))


def write_compact(file: Path, content: dict) -> None:
    """JSON with a line for each key of the outermost mapping, since predictions are long lists."""
    from tokenization.files import write_whole

    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write_whole(file, lambda path: path.write_text(f"{{\n{lines}\n}}\n"))


def costs(steps: list[Step], work: Path) -> dict:
    """{"models": {name: costs}, "search": {name: {rate: validation loss}}, "steps": {step: time}, ...}.

    Of a model: cpu_seconds of its steps; process_cpu_seconds of the whole command with reading and validation (None
    if the study did not run it). The cost of a Toto's tokens, training the tokenizer and encoding, is separate.
    """
    times = work / "times"
    spent_by = {
        str(file.relative_to(times).with_suffix("")): json.loads(file.read_text()) for file in times.rglob("*.json")
    }
    models, search = {}, {}
    for step in steps:
        kind, name = step.name.split("/")
        is_pretraining = kind == "pretrain" or name.startswith("pretrain_")
        if is_pretraining and step.made.exists():
            run = step.made.parent if step.made.name == "study.json" else step.made.parent.parent
            spent = spent_by.get(step.name, {}).get("cpu_seconds")
            found = of_peer(run) if step.made.name == "study.json" else of_toto(run, spent)
            models[name.replace("pretrain_", "grid_")] = found | {"process_cpu_seconds": spent}
        elif kind == "search" and step.made.exists():
            model, rate = name.split("_")
            run = step.made.parent if step.made.name == "study.json" else step.made.parent.parent
            search.setdefault(model, {})[rate] = validation_loss(run)
    return {
        "models": models,
        "search": search,
        "tokenizer_training_cpu_seconds": TOKENIZER_TRAINING_CPU_SECONDS,
        "steps": dict(sorted(spent_by.items())),
    }


def of_peer(run: Path) -> dict:
    """From the study.json of a peer; its costs include reading the pictures and, for an iGPT, finding its colours."""
    study = json.loads((run / "study.json").read_text())
    return study | {"charged_cpu_seconds": study["cpu_seconds"] + study["preparation_cpu_seconds"]}


def of_toto(run: Path, spent: float | None) -> dict:
    """From the metrics of a run of `toto pretrain`.

    cpu_seconds is the wall-clock time of its steps times its threads, or the CPU time that the study measured (`spent`,
    None if the study did not run it) if that is less, because other jobs shared the core.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    import modeling_toto  # noqa: F401  (AutoConfig then knows "toto")
    from training.flags import read_recipe

    recipe = read_recipe(run)
    checkpoint = max((run / "checkpoints").iterdir())
    config = AutoConfig.from_pretrained(checkpoint)
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "learning_rate" in row][-1]
    sources, tokens_a_row = last["sources"], config.num_frames * config.tokens_per_frame
    unique = sum(its["rows"] / max(1.0, its["epochs"]) for its in sources.values())
    versions = json.loads((run / "versions.json").read_text())
    wall = last["seconds"] * versions["threads"]
    return {
        "kind": "toto",
        "parameters": parameters,
        "probed_parameters": parameters,
        "steps": last["step"],
        "images_seen": config.num_frames * sources.get("cifar10", {}).get("rows", 0),
        "clips_seen": sum(its["rows"] for name, its in sources.items() if name != "cifar10"),
        "tokens_seen": last["tokens"],
        "unique_tokens": round(unique * tokens_a_row),
        "epochs": {name: its["epochs"] for name, its in sources.items()},
        "flops": last["flops"],
        "cpu_seconds": wall if spent is None else min(wall, spent),
        "learning_rate": recipe["learning_rate"],
        "loss": last["loss"],
        "val_loss": next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), None),
        "seed": recipe["seed"],
        "versions": versions,
    }
