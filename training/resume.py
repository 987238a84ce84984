"""What is not as it was when a run is resumed, and what that does to exactness."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .args import require

# Setting -> what a change of it does to the losses to come. What is in none of these lists is told as a change of the
# training itself.
NOTHING = (
    *("save_steps", "keep_checkpoints", "logging_steps", "eval_steps", "report_to", "push_to_hub", "hub_model_id"),
    *("max_minutes", "max_skipped_steps", "val_rows", "workers", "test_split", "max_test", "decode"),
)
ROUNDING = ("per_device_batch_size", "compile", "liger", "gradient_checkpointing")
DECIDED = ("init_from", "scale", "model")
# What a checkpoint has settled, so that another value is refused.
SETTLED = (
    *("preset", "config", "architecture", "attention_mode", "prefix_length", "pooler", "feature_layer", "num_frames"),
    *("resolution", "rope_theta", "next_token_loss", "next_token_loss_weight"),
)
DATA = ("shards", "val_shards", "sources", "tokenizer", "seed", "tokens_per_step", "dataset", "label_column")
DATA += ("train_split", "validation_split", "max_train", "max_validation", "batch_size", "augment", "mixup", "cutmix")
SAME_MACHINE = ("torch", "transformers", "accelerate", "numpy", "threads", "device", "mixed_precision")

EXACT, ROUNDED, OTHER = "the losses stay exact", "the losses differ by rounding", "the losses differ"


def read_recipe(run: Path) -> dict:
    """The settings that a run was begun with, sources as they are in `DataArgs`."""
    import yaml

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    if recipe.get("sources"):
        recipe["sources"] = [json.dumps(source) for source in recipe["sources"]]
    return recipe


def changed_settings(recipe: dict, *now) -> list[str]:
    """Sentences for the settings that differ from the run's own recipe.yaml. now: the settings' dataclasses.

    Raises:
        ValueError: another model than the checkpoint's.
    """
    found = []
    settings = {key: value for concern in now for key, value in asdict(concern).items()}
    for key, value in settings.items():
        if key in ("recipe", "resume", "output_dir") or key not in recipe or recipe[key] == value:
            continue
        told = f"{key} is {value} and was {recipe[key]}"
        require(
            key not in SETTLED,
            f"--{key} is {value}, but the run was begun with {recipe[key]} and cannot change; leave it out, or begin a "
            f"new run from these weights with --{'model' if 'model' in recipe else 'init_from'}.",
        )
        if key in NOTHING:
            found.append(f"{told}: {EXACT}.")
        elif key in ROUNDING:
            found.append(f"{told}: the same rows in the same steps, so {ROUNDED}.")
        elif key in DECIDED:
            found.append(f"{told}: that has no effect, since the checkpoint decides it.")
        elif key in DATA:
            found.append(f"{told}: other rows from here on, so {OTHER} from those of the uninterrupted run.")
        else:
            found.append(f"{told}: {OTHER} from those of the uninterrupted run.")
    return found


def changed_surroundings(saved: dict, now: dict, is_indexed: bool) -> list[str]:
    """Sentences for data, processes, machine and versions that differ.

    saved, now: {"world", "fingerprints": {source: ...}, "versions": {...}}. is_indexed: whether the rows are the same
    for any number of processes (`RowStream.is_indexed`).
    """
    found = []
    if saved["world"] != now["world"]:
        rows = (
            f"the rows and their order stay the same, and {ROUNDED}"
            if is_indexed
            else f"pixels are shared out anew, so that some clips come twice or not in this epoch, and {OTHER}"
        )
        found.append(f"The run had {saved['world']} processes and has {now['world']}: {rows}.")
    for name, fingerprint in now["fingerprints"].items():
        if name not in saved["fingerprints"]:
            found.append(f"The source '{name}' is new: {OTHER}.")
        elif saved["fingerprints"][name] != fingerprint:
            found.append(f"The data of the source '{name}' are not those of before: {OTHER}.")
    found += [f"The source '{name}' is gone: {OTHER}." for name in saved["fingerprints"].keys() - now["fingerprints"]]
    for name in SAME_MACHINE:
        before, after = saved["versions"].get(name), now["versions"].get(name)
        if before != after:
            found.append(f"{name} is {after} and was {before}: the losses may differ by rounding.")
    return found


def shared_out_anew(state: dict, world: int) -> dict:
    """The stream states of the processes of a run, made one for another number of processes.

    Shards have nothing to share out. A source of pixels goes on at the earliest place that any process had reached.
    """
    states = state["streams"]
    if len(states) == world:
        return states
    first = states[0]
    for name, source in first["sources"].items():
        if source["position"] is not None:
            source["position"] = min(other["sources"][name]["position"] for other in states)
    return [first] * world


def told(run: Path, step: int, sentences: list[str]) -> str:
    """What is printed, and added to RUN/changes.txt."""
    text = f"Resumed after step {step} with changes:\n" + "".join(f"- {sentence}\n" for sentence in sentences)
    with (run / "changes.txt").open("a") as file:
        file.write(text)
    return text.rstrip()
