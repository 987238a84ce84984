"""The differences that a resumed run reports, and whether its losses stay exact."""

from __future__ import annotations

from dataclasses import asdict

from training.flags import require

# Setting -> what changing it does to the losses that follow. A setting in none of these lists changes the training.
NOTHING = (
    *("save_steps", "keep_checkpoints", "logging_steps", "eval_steps", "report_to", "push_to_hub", "hub_model_id"),
    *("max_skipped_steps", "val_rows", "workers", "test_split", "max_test", "decode", "eval_frames"),
    "async_checkpoints",
)
ROUNDING = ("per_device_batch_size", "compile", "liger", "gradient_checkpointing", "gradient_reduction")
ROUNDING += ("deterministic",)
DECIDED = ("init_from", "scale", "model")
# Settings that are part of the checkpoint's model or moments: another value is refused.
SETTLED = (
    *("preset", "config", "architecture", "attention_mode", "prefix_length", "pooler", "feature_layer", "num_frames"),
    *("resolution", "rope_theta", "next_token_loss", "next_token_loss_weight", "optimizer"),
)
# Setting that older runs did not have -> what they trained with.
ADDED = {"optimizer": "adamw"}
DATA = ("shards", "val_shards", "sources", "tokenizer", "seed", "tokens_per_step", "dataset", "label_column")
DATA += ("train_split", "validation_split", "max_train", "max_validation", "batch_size", "augment", "mixup", "cutmix")
DATA += ("split", "eval_split", "crops", "group_by", "split_seed")
SAME_MACHINE = ("torch", "transformers", "accelerate", "numpy", "threads", "device", "mixed_precision")

EXACT, ROUNDED, OTHER = "the losses stay exact", "the losses differ by rounding", "the losses differ"


def changed_settings(recipe: dict, *now, settled=SETTLED, weights_flag: str | None = None) -> list[str]:
    """A sentence for each setting that differs from the run's recipe.yaml.

    Args:
        now: the command's dataclasses.
        settled: fields that may not change.
        weights_flag: the flag that starts a new run from existing weights.
    Raises:
        ValueError: one of `settled` has changed.
    """
    found, recipe = [], ADDED | recipe
    for key, value in ((key, value) for concern in now for key, value in asdict(concern).items()):
        if key in ("recipe", "resume", "output_dir") or key not in recipe or recipe[key] == value:
            continue
        instead = f"start a new run from these weights with {weights_flag}" if weights_flag else "start a new run"
        require(
            key not in settled,
            f"--{key} is {value}, but the run was started with {recipe[key]} and cannot change; leave it out, or "
            f"{instead}.",
        )
        found.append(f"{key} is {value} and was {recipe[key]}: {_effect(key)}.")
    return found


def _effect(key: str) -> str:
    """The effect of changing this setting on the losses of a resumed run."""
    if key in NOTHING:
        return EXACT
    if key in ROUNDING:
        return f"the same rows in the same steps, so {ROUNDED}"
    if key in DECIDED:
        return "that has no effect, since the checkpoint decides it"
    rows = "other rows from here on, so " if key in DATA else ""
    return f"{rows}{OTHER} from those of the uninterrupted run"


def changed_surroundings(saved: dict, now: dict, is_indexed: bool) -> list[str]:
    """A sentence for each difference in data, processes, machine and versions.

    Args:
        saved, now: {"world", "fingerprints": {source: ...}, "versions": {...}}; keys missing in `saved` are ignored.
        is_indexed: see `Run.report_changes`.
    """
    found = []
    if saved.get("world", now["world"]) != now["world"]:
        rows = (
            f"the rows and their order stay the same, and {ROUNDED}"
            if is_indexed
            else f"pixels are distributed again, so that this epoch repeats or misses some clips, and {OTHER}"
        )
        found.append(f"The run had {saved['world']} processes and has {now['world']}: {rows}.")
    before = saved.get("fingerprints", {})
    for name, fingerprint in now["fingerprints"].items():
        if name not in before:
            found.append(f"The source '{name}' is new: {OTHER}.")
        elif before[name] != fingerprint:
            found.append(f"The data of the source '{name}' has changed: {OTHER}.")
    found += [f"The source '{name}' was removed: {OTHER}." for name in before.keys() - now["fingerprints"]]
    for name in SAME_MACHINE if "versions" in saved else ():
        was, is_now = saved["versions"].get(name), now["versions"].get(name)
        if was != is_now:
            found.append(f"{name} is {is_now} and was {was}: the losses may differ by rounding.")
    return found


def redistributed(state: dict, world: int) -> dict:
    """The stream state of every process, if the number of processes differs from that of the checkpoint.

    Shards need no change. A source of pixels continues from the earliest position that any process had reached.
    """
    states = state["streams"]
    if len(states) == world:
        return states
    first = states[0]
    for name, source in first["sources"].items():
        if source["position"] is not None:
            source["position"] = min(other["sources"][name]["position"] for other in states)
    return [first] * world
