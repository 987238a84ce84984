"""Checkpoints of a run: written atomically, found again, and read without unpickling.

A checkpoint is a Hugging Face folder (model, processor) that also holds the training state:
checkpoints/step_000500/{config.json, model.safetensors, processor_config.json, visual_tokenizer/, training_state/}.
The optimiser's moments are safetensors too (moments.py). Every process writes its own part of them, and any number of
processes can read them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenization.files import sha256
from training.find_model import STATE, STEP, SUMS, steps


def newest_sound(run: str | Path) -> tuple[Path, list[str]]:
    """(newest checkpoint whose checksums are correct, a sentence for each newer one that is damaged).

    Damaged checkpoints are renamed to damaged_step_XXXXXX, so that they do not count among those to keep.

    Raises:
        FileNotFoundError: there is none.
    """
    damaged = []
    for checkpoint in reversed(steps(run)):
        listed = json.loads((checkpoint / STATE / SUMS).read_text()) if (checkpoint / STATE / SUMS).is_file() else {}
        changed = [name for name, (_, digest) in listed.items() if sha256(checkpoint / name) != digest]
        if not changed:
            return checkpoint, damaged
        damaged.append(f"{checkpoint} is skipped: the checksum of {changed[0]} is wrong.")
        shutil.rmtree(checkpoint.with_name(f"damaged_{checkpoint.name}"), ignore_errors=True)
        checkpoint.rename(checkpoint.with_name(f"damaged_{checkpoint.name}"))
    raise FileNotFoundError(f"{run} holds no undamaged checkpoint to resume from. {' '.join(damaged)}".strip())


@contextlib.contextmanager
def writing(
    run: Path,
    step: int,
    keep: int | None,
    is_main: bool = True,
    wait: Callable[[], None] = lambda: None,
    spared: frozenset[int] | set[int] = frozenset(),
) -> Iterator[Path]:
    """A temporary folder that becomes checkpoints/step_XXXXXX when the body ends, and is deleted if the body fails.

    Its files are listed with their checksums and flushed to the disk, and the folder is renamed. Then all checkpoints
    are deleted, except the newest `keep` and those of the steps `spared`. Every process may write into the folder; the
    one with `is_main` does the rest, and `wait` is their barrier.

    Raises:
        OSError: the disk is full; existing files are unchanged.
    """
    from safetensors import SafetensorError

    final = run / "checkpoints" / f"step_{step:06d}"
    temporary = final.with_name(f".{final.name}.partial")
    try:
        if is_main:
            for left in final.parent.glob(".*.partial"):  # of a run that was killed
                shutil.rmtree(left)
            (temporary / STATE).mkdir(parents=True)
        wait()
        yield temporary
        wait()
        if is_main:
            (temporary / STATE / SUMS).write_text(json.dumps(_checksums(temporary), indent=1) + "\n")
            _flush(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not _disk_is_full(error):
            raise
        good = steps(run)
        rest = (
            f"free some space, then use `--resume {run}` (the last checkpoint is {good[-1]})"
            if good
            else "free some space and start again (there is no checkpoint yet)"
        )
        raise OSError(f"The disk is full and checkpoint {final} could not be written; {rest}.") from error
    if is_main:
        _drop(final)
        temporary.rename(final)
        _flush_folder(final.parent)
        for old in steps(run)[:-keep] if keep else []:
            # A run that resumed from an earlier step has older checkpoints with higher numbers.
            if old != final and int(STEP.search(old.name)[1]) not in spared:
                _drop(old)
    wait()


def save(run: Path, step: int, model, processor, state: dict, loop_state: dict, keep: int | None) -> Path:
    """Write a checkpoint from one process (model, processor and training state), and return its folder.

    Args:
        state: nested dicts and lists of tensors and numbers (optimisers, generators). loop_state: JSON.

    Raises:
        OSError: the disk is full; existing files are unchanged.
    """
    import torch

    with writing(run, step, keep) as folder:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        torch.save(state, folder / STATE / "state.pt")
        save_loop(folder, loop_state)
    return run / "checkpoints" / f"step_{step:06d}"


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a kill never leaves half of it under its name."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f".{checkpoint.name}.old.partial")
        shutil.rmtree(hidden, ignore_errors=True)
        checkpoint.rename(hidden)
        shutil.rmtree(hidden)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SUMS]


def _checksums(folder: Path) -> dict[str, list]:
    """File -> [bytes, sha256]."""
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256(path)] for path in _files(folder)}


def _flush(folder: Path) -> None:
    """Flush the files to the disk, so that a renamed checkpoint survives a power cut."""
    for path in (*_files(folder), folder / STATE / SUMS):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush_folder(inside)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system supports it."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _disk_is_full(error: Exception) -> bool:
    # torch and safetensors report a full disk in their own exceptions, by text only.
    text = str(error)
    return getattr(error, "errno", None) == errno.ENOSPC or any(
        sign in text
        for sign in ("No space left", "os error 28", "unexpected pos", "PytorchStreamWriter", "file write failed")
    )


def save_loop(folder: Path, loop_state: dict) -> None:
    """Write the loop's own state, as JSON."""
    (folder / STATE / "loop.json").write_text(json.dumps(loop_state) + "\n")


def load_loop(checkpoint: Path) -> dict:
    """The loop's state that `save_loop` wrote.

    Raises:
        FileNotFoundError: the checkpoint has no training state.
    """
    file = checkpoint / STATE / "loop.json"
    if not file.is_file():
        raise FileNotFoundError(f"{checkpoint} has no training state; a run cannot be resumed from it.")
    return json.loads(file.read_text())


def load_state(checkpoint: Path) -> tuple[dict, dict]:
    """The `state` of `save` (tensors and numbers, never unpickled as objects), and the loop's JSON state."""
    import torch

    loop_state = load_loop(checkpoint)
    state = torch.load(checkpoint / STATE / "state.pt", map_location="cpu", weights_only=True)
    return state, loop_state
