"""Pushing a checkpoint to the Hub: model, processor, visual tokenizer and card, in one commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from training.engine.checkpoints import STATE, STEP
from training.publish.cards import complete_folder, model_card
from training.publish.media_seen import MEDIA_FILE

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

# Only resuming needs these, or they would have to be unpickled.
NOT_PUSHED = [f"{STATE}/", "trainer_state.json", "*.pt", "*.pth", "*.bin", "*.pkl", "*__pycache__/*", ".*"]
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def create_repo(repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Create the repository if there is none; returns its full name. Called before a long run, it shows a missing token
    in time.

    Raises:
        ValueError: not a valid name.
        OSError: no token, no right, or no connection.
    """
    from huggingface_hub import HfApi

    return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    *,
    results: list[dict] | None = None,
) -> CommitInfo:
    """Push model, processor, visual tokenizer and card into one repository, in one commit; create it if needed.

    Args:
        folder: a Hugging Face folder or a run folder (see `resolve_model`). A README.md in it is the card;
            otherwise one is written from the run's recipe.yaml and metrics.jsonl, and from `results`.
        repo_id: "user/name", or "name" in one's own namespace. `private` counts only when it is created.
        results: contents of result files of `toto probe`, for the card.
    Returns:
        huggingface_hub's CommitInfo. The run's media.json, which lists what the model saw, is pushed too; optimiser
        state is not. Weight files of an earlier push that this one does not overwrite are deleted, since transformers
        would load them instead.
    Raises:
        FileNotFoundError: no model, or no processor in the same folder.
        OSError: the Hub refused (no token, no right) or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import filter_repo_objects

    folder = complete_folder(folder)
    api = HfApi(token=token)
    repo_id = create_repo(repo_id, private, token)
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files: dict[str, str | bytes] = {
        path: str(folder / path) for path in filter_repo_objects(paths, ignore_patterns=NOT_PUSHED)
    }
    if "README.md" not in files:
        metrics, recipe = run_facts(folder)
        files["README.md"] = model_card(
            folder, metrics=metrics, recipe=recipe, results=results, repo_id=repo_id
        ).encode()
    run = folder.parent.parent
    if MEDIA_FILE not in files and folder.parent.name == "checkpoints" and (run / MEDIA_FILE).is_file():
        files[MEDIA_FILE] = str(run / MEDIA_FILE)
    there = filter_repo_objects(api.list_repo_files(repo_id), allow_patterns=WEIGHTS)
    operations = [CommitOperationDelete(path) for path in there if path not in files]
    operations += [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message=commit_message or f"Upload {folder.name}")


def run_facts(checkpoint: Path) -> tuple[dict | None, dict | None]:
    """(last validation row up to this checkpoint, resolved recipe) of its run; None for what there is not.

    Of a fine-tuning that ended with this checkpoint the row has "test", the run's results.json.
    """
    import yaml

    step = STEP.search(checkpoint.name)
    if step is None or checkpoint.parent.name != "checkpoints":
        return None, None
    run = checkpoint.parents[1]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) if (run / "recipe.yaml").is_file() else None
    rows = []
    if (run / "metrics.jsonl").is_file():
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "val_loss" in row and row["step"] <= int(step[1])]
    row = validated[-1] if validated else None
    if row is not None and (run / "results.json").is_file():
        test = json.loads((run / "results.json").read_text())
        row |= {"test": test} if Path(test.get("checkpoint", "")).name == checkpoint.name else {}
    return row, recipe


__all__ = ["create_repo", "model_card", "push_folder", "run_facts"]
