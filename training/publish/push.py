"""Pushes a checkpoint to the Hub: model, processor, visual tokenizer and card, in one commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from training.find_model import STATE, STEP
from training.publish.cards import complete_folder, model_card
from training.publish.media_seen import MEDIA_FILE

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

# Files that only resuming needs, and files that would have to be unpickled.
NOT_PUSHED = [f"{STATE}/", "trainer_state.json", "*.pt", "*.pth", "*.bin", "*.pkl", "*__pycache__/*", ".*"]
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def create_repo(repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Create the repository unless it exists, and return its full name. A long run calls it first, to fail early.

    Raises:
        ValueError: if the name is not valid.
        OSError: if the token, the permission or the connection is missing.
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
    """Push model, processor, visual tokenizer and card in one commit; the repository is created if needed.

    Args:
        folder: a Hugging Face folder or a run folder (see `resolve_model`). A README.md in it is used as
            the card; otherwise the card is written from the run's recipe.yaml and metrics.jsonl, and from `results`.
        repo_id: "user/name", or "name" in your own namespace.
        private: whether a new repository is private; an existing one is not changed.
        results: contents of result files of `toto probe`, for the card.
    Returns:
        huggingface_hub's CommitInfo. The run's media.json, which lists the media that the model was trained on, is
        pushed as well; optimiser state is not. Weight files of an earlier push that this one does not overwrite are
        deleted, since transformers would load them instead.
    Raises:
        FileNotFoundError: if the folder holds no model, or no processor.
        OSError: if the Hub refuses the push (token or permission missing) or cannot be reached.
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
    """(last validation row up to this checkpoint, resolved recipe) of the checkpoint's run; None for what is missing.

    If a fine-tuning selected this checkpoint, the row also holds the run's results.json, under "test".
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
