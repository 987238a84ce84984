"""Which checkpoint a name stands for: the valid checkpoints of a run folder, and the model behind `--model`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenization.sources.named import require_on_hub
from tokenization.storage.copies import local_folder
from tokenization.storage.remote import Remote, is_remote

STATE, SUMS = "training_state", "checksums.json"
STEP = re.compile(r"step_(\d+)$")
# Under a URL, a checkpoint is whole once its list of checksums is there, which is uploaded last.
MARKER = f"{STATE}/{SUMS}"


def steps(run: str | Path) -> list[Path]:
    """The valid checkpoints of a run, oldest first; damaged ones are left out."""
    folders = [p for p in (Path(run) / "checkpoints").glob("step_*") if STEP.search(p.name)]
    return [p for p in sorted(folders, key=lambda p: int(STEP.search(p.name)[1])) if is_valid(p)]


def is_valid(checkpoint: Path) -> bool:
    """Whether all listed files exist with their sizes; without a list, whether the weights can be opened."""
    from safetensors import SafetensorError, safe_open

    listed = checkpoint / STATE / SUMS
    if listed.is_file():
        sizes = {name: size for name, (size, _) in json.loads(listed.read_text()).items()}
        return all((checkpoint / n).is_file() and (checkpoint / n).stat().st_size == s for n, s in sizes.items())

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


def step_of(name: str) -> int | None:
    """The step of the checkpoint that a file of a run is in, by its name in the run; None if it is in none."""
    parts = name.split("/")
    found = STEP.fullmatch(parts[1]) if parts[0] == "checkpoints" and len(parts) > 2 else None
    return found and int(found[1])


def whole_steps(names: Iterable[str]) -> list[int]:
    """The steps whose checkpoints are whole, ascending. names: of all files of a run under a URL."""
    return sorted(step for name in names if name.endswith(f"/{MARKER}") and (step := step_of(name)) is not None)


def latest(run: str | Path) -> Path:
    """The newest valid checkpoint of a run folder.

    Raises:
        FileNotFoundError: it has none.
    """
    found = steps(run)
    if not found:
        raise FileNotFoundError(
            f"{run} holds no valid checkpoint (checkpoints/step_*); the run may have been stopped before the first one."
        )
    return found[-1]


def began_with(run: str | Path) -> str | None:
    """What the weights of a run began with, `init_from` of its recipe; None for random ones or without a recipe."""
    import yaml

    recipe = Path(run) / "recipe.yaml"
    return yaml.safe_load(recipe.read_text()).get("init_from") if recipe.is_file() else None


def lineage(run: str | Path) -> list[list[Path]]:
    """The checkpoints of a run, after those of the runs whose weights it began with; oldest first.

    It begins behind the first weights that are no run folder here, and no checkpoint of one.
    """
    parts, before = [steps(run)], began_with(run)
    while before is not None:
        last = Path(before) if STEP.search(Path(before).name) else None
        found = steps(last.parents[1] if last else before)
        if last in found:
            found = found[: found.index(last) + 1]
        if not found or any(found[0] in part for part in parts):
            break
        parts.insert(0, found)
        before = began_with(found[0].parents[1])
    return parts


def resolve_model(model: str) -> str:
    """The model folder or Hub id for `--model`, which may be a run folder, a Hugging Face folder or a Hub id.

    A run folder gives its newest valid checkpoint, or that named in its results.json if it is a tested fine-tuning. Of
    a URL, what is needed is copied to this machine.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no model.
    """
    if is_remote(model):
        return str(_fetched(model))
    path = Path(model)
    if not path.is_dir():
        if path.exists():
            raise FileNotFoundError(f"There is no model folder '{model}'; check the path.")
        require_on_hub(model, "model")
        return model
    if (path / "checkpoints").is_dir():
        return str(_tested(path) or latest(path))
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{model} is neither a run folder (checkpoints/) nor a model folder (config.json).")
    return str(path)


def _fetched(url: str) -> Path:
    """A copy of the model folder under a URL, or of the checkpoint of a run that `resolve_model` takes."""
    remote = Remote(url)
    names, url = remote.files(), url.rstrip("/")
    if "config.json" not in names:
        whole = whole_steps(names)
        if not whole:
            raise FileNotFoundError(f"{url} is neither a model (config.json) nor a run with a whole checkpoint.")
        named = json.loads(remote.read("results.json")).get("checkpoint") if "results.json" in names else None
        found = STEP.search(named or "")
        step = int(found[1]) if found and int(found[1]) in whole else whole[-1]
        url = f"{url}/checkpoints/step_{step:06d}"
        names = [name.split("/", 2)[2] for name in names if step_of(name) == step]
    return local_folder(url, [name for name in names if not name.startswith(f"{STATE}/")])


def _tested(run: Path) -> Path | None:
    """The checkpoint that a fine-tuning was tested with, even if the run was moved; None if there is none."""
    if not (run / "results.json").is_file():
        return None
    named = json.loads((run / "results.json").read_text()).get("checkpoint")  # not in a file of toto probe
    tested = run / "checkpoints" / Path(named or "").name
    return tested if named and is_valid(tested) else None
