"""Sentences on what a continuation asks of a model that its training did not have: window, size, time step, tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trained:
    """What a run recorded of the video rows that a model was trained on.

    Fields:
        tokenizers: fingerprints of their visual tokenizers. resolutions: sides of their frames in pixels.
        strides, rates: of those from videos: every stride-th frame, or frames per second.
    """

    tokenizers: frozenset[str] = frozenset()
    resolutions: frozenset[int] = frozenset()
    strides: frozenset[int] = frozenset()
    rates: frozenset[float] = frozenset()


def trained_on(checkpoint: str | Path) -> Trained | None:
    """What the run of a checkpoint recorded; None for a model outside its run, which has no such record.

    checkpoint: of `training.find_model.resolve_model`. Shards that no longer exist are left out.
    """
    from training.args import DataArgs
    from training.flags import read_recipe
    from training.rows.shard_rows import read_manifest

    path = Path(checkpoint)
    run = path.parent.parent
    if path.parent.name != "checkpoints" or not (run / "recipe.yaml").is_file():
        return None
    recipe = read_recipe(run)
    settings = {key: recipe[key] for key in ("shards", "val_shards", "sources") if recipe.get(key)}
    found: dict[str, set] = {"tokenizers": set(), "resolutions": set(), "strides": set(), "rates": set()}

    def add(**values) -> None:
        for name, value in values.items():
            if value is not None:
                found[name].add(value)

    for source in DataArgs(**settings).mixture():
        if _are_there(source):
            manifest = read_manifest(source.data)
            add(tokenizers=manifest["tokenizer"]["fingerprint"], resolutions=manifest.get("resolution"))
            if manifest["kind"] == "video" and manifest["dataset"].split(":")[0] != "toyworld":
                add(strides=manifest.get("stride"), rates=manifest.get("fps"))
        elif source.kind == "video":  # pixels, tokenized while training
            add(strides=None if source.fps else source.stride, rates=source.fps)
    return Trained(**{name: frozenset(values) for name, values in found.items()})


def _are_there(source) -> bool:
    """Whether a source is shards that can be read; a URL may be out of reach."""
    try:
        return source.is_shards
    except OSError:
        return False


def unlike_training(
    config, processor, frames: int, trained: Trained | None, stride: int | None = None, fps: float | None = None
) -> list[str]:
    """A sentence for each thing that differs from the training, as far as that is recorded.

    Args:
        config: TotoConfig. processor: the TotoProcessor used with it. frames: of the prompt and drawn, together.
        trained: of `trained_on`. stride, fps: of a video that is read; None for clips that are drawn or given.
    """
    found, side = [], processor.resolution
    if min(frames, config.context_frames) > config.num_frames:
        found.append(
            f"The model was trained on rows of {config.num_frames} frames, but this row reaches "
            f"{min(frames, config.context_frames)}; positions behind frame {config.num_frames} are new to it."
        )
    h, w = processor.grid
    if h * w != config.tokens_per_frame:
        found.append(
            f"The model was trained on {config.tokens_per_frame} tokens a frame, but frames of {side} pixels have "
            f"{h * w}; use the resolution that it was trained with."
        )
    if processor.num_codes != config.num_codes:
        found.append(
            f"The model was trained on {config.num_codes} codes, but the visual tokenizer has {processor.num_codes}; "
            "use the tokenizer that it was trained with."
        )
    if trained is None:
        return found
    if trained.resolutions and side not in trained.resolutions:
        found.append(
            f"The model was trained on frames of {_listed(trained.resolutions)} pixels, but these have {side}; "
            "what it sees is of another size."
        )
    if trained.tokenizers and processor.fingerprint not in trained.tokenizers:
        found.append(
            f"The model was trained on codes of the visual tokenizer {_listed(trained.tokenizers)}, but this one is "
            f"{processor.fingerprint}; its codes mean something else."
        )
    if fps is not None and trained.rates and fps not in trained.rates:
        found.append(
            f"The model was trained on {_listed(trained.rates)} frames per second, but this clip has {fps:g}; motion "
            "has another speed."
        )
    if fps is None and stride is not None and (trained.strides or trained.rates) and stride not in trained.strides:
        taken = [f"every {each}th frame" for each in sorted(trained.strides)]
        taken += [f"{each:g} frames per second" for each in sorted(trained.rates)]
        found.append(
            f"The model was trained on {' and '.join(taken)} of its videos, but of this one every {stride}th frame is "
            "taken; motion may have another speed."
        )
    return found


def _listed(values) -> str:
    return " or ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in sorted(values))
