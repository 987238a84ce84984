"""Checkpoints of a run: written whole or not at all, found again, read without unpickling.

A checkpoint is a Hugging Face folder (model, processor) with the training state beside it:
checkpoints/step_000500/{config.json, model.safetensors, processor_config.json, visual_tokenizer/, training_state/}.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

STATE = "training_state"
STEP = re.compile(r"step_(\d+)$")


def steps(run: str | Path) -> list[Path]:
    """The valid checkpoints of a run, oldest first; a damaged one is passed over."""
    folders = [p for p in (Path(run) / "checkpoints").glob("step_*") if STEP.search(p.name)]
    return [p for p in sorted(folders, key=lambda p: int(STEP.search(p.name)[1])) if is_valid(p)]


def is_valid(checkpoint: Path) -> bool:
    """Whether the weights are all there: a readable header, and a file as long as the header says."""
    from safetensors import SafetensorError, safe_open

    files = list(checkpoint.glob("model*.safetensors"))
    if not files or not (checkpoint / "config.json").is_file():
        return False
    try:
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
    except (SafetensorError, OSError):
        return False
    return True


def latest(run: str | Path) -> Path:
    """The newest valid checkpoint of a run folder.

    Raises:
        FileNotFoundError: it has none.
    """
    found = steps(run)
    if not found:
        raise FileNotFoundError(
            f"{run} holds no valid checkpoint (checkpoints/step_*); was the run stopped before one?"
        )
    return found[-1]


def resolve_model(model: str) -> str:
    """What `--model` may be: a run folder (its newest valid checkpoint), a Hugging Face folder, or a Hub id.

    Raises:
        FileNotFoundError: a folder that is neither.
    """
    path = Path(model)
    if not path.is_dir():
        if path.exists() or model.startswith((".", "/")) or model.count("/") > 1:
            raise FileNotFoundError(f"There is no model folder '{model}'.")
        return model
    if (path / "checkpoints").is_dir():
        return str(latest(path))
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{model} is neither a run folder (checkpoints/) nor a model folder (config.json).")
    return str(path)


def save(run: Path, step: int, model, processor, state: dict, loop_state: dict, keep: int | None) -> Path:
    """Write checkpoints/step_XXXXXX under a temporary name, then rename it; drop all but the newest `keep`.

    Args:
        state: nested dicts and lists of tensors and numbers (optimisers, generators). loop_state: JSON.

    Raises:
        OSError: the disk is full; nothing that was there before is touched.
    """
    import torch
    from safetensors import SafetensorError

    final = run / "checkpoints" / f"step_{step:06d}"
    temporary = final.with_name(f".{final.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / STATE).mkdir(parents=True)
        model.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)
        torch.save(state, temporary / STATE / "state.pt")
        (temporary / STATE / "loop.json").write_text(json.dumps(loop_state) + "\n")
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not _disk_is_full(error):
            raise
        good = steps(run)
        rest = (
            f"the last good one is {good[-1]}; free some space, then `--resume {run}`" if good else "there is none yet"
        )
        raise OSError(f"The disk is full: checkpoint {final} could not be written; {rest}.") from error
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in steps(run)[:-keep] if keep else []:
        shutil.rmtree(old)
    return final


def _disk_is_full(error: Exception) -> bool:
    # torch and safetensors report a full disk in their own exceptions, by text only.
    text = str(error)
    return getattr(error, "errno", None) == errno.ENOSPC or any(
        sign in text
        for sign in ("No space left", "os error 28", "unexpected pos", "PytorchStreamWriter", "file write failed")
    )


def load_state(checkpoint: Path) -> tuple[dict, dict]:
    """The `state` of `save` (tensors and numbers, never unpickled as objects), and the loop's JSON state."""
    import torch

    folder = checkpoint / STATE
    if not folder.is_dir():
        raise FileNotFoundError(f"{checkpoint} has no training state, so a run cannot be resumed from it.")
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    return state, json.loads((folder / "loop.json").read_text())
