"""The line `next: toto ...` that ends a command whose output another one reads; the only place that makes it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from tokenization.sources.kinds import VIDEOS, suffix_of

_silent: list[bool] = []


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No such lines, for a command that runs others, such as `toto demo`."""
    _silent.append(True)
    try:
        yield
    finally:
        _silent.pop()


def say_next(*words: object) -> None:
    """Print `next: toto` and the words, quoted for a shell; the first of several processes does."""
    if not _silent and os.environ.get("RANK", "0") == "0":
        print(f"next: toto {shlex.join(str(_short(word)) for word in words)}")


def after_tokenize(output: str, manifest: dict, split: str) -> None:
    """Training shards are pre-trained on; others validate a run on shards of the split train."""
    if split != "train":
        return
    (h, w), frames = manifest["grid"], manifest["num_frames"] if manifest["kind"] == "video" else 16
    words: list[object] = ["pretrain", "--recipe", "tiny_cpu", "--shards", output]
    sizes = {"vocab_size": 64 + manifest["num_codes"], "tokens_per_frame": h * w, "num_frames": frames}
    if sizes != {"vocab_size": 576, "tokens_per_frame": 64, "num_frames": 16}:  # those of the preset tiny
        row = frames * h * w
        words += ["--config", json.dumps(sizes | {"max_position_embeddings": row + 2}), "--tokens_per_step", 4 * row]
    say_next(*words)


def after_pretrain(run: str | Path, dataset: str | None) -> None:
    """Continue a video of those that were trained on, or of the embedded world.

    Args:
        dataset: of the first source; None if it is not known.
    """
    video = None if dataset is None else first_video(dataset)
    if video is not None:
        say_next("generate", "--model", run, "--video", video, "--output", Path(run) / "continued")
    else:
        say_next("probe", "--model", run, "--output", Path(run) / "probe.json")


def after_generate(model: str, output: str) -> None:
    folder = Path(output).parent if Path(output).suffix in (".mp4", ".gif") else Path(output)
    run = ["--runs", model] if (Path(model) / "metrics.jsonl").is_file() else []
    shown = folder if folder == Path(output) else Path(output).with_suffix(".png")
    say_next("report", *run, "--generations", shown, "--output", folder / "report.html")


def after_result(file: str | Path, model: str | None = None) -> None:
    """A result of a probe or a fine-tuning is read by the report."""
    run = ["--runs", model] if model and (Path(model) / "metrics.jsonl").is_file() else []
    say_next("report", "--results", file, *run, "--output", Path(file).with_name("report.html"))


def look_inside(model: str, dataset: str, output: str | Path) -> None:
    """What a model that continues clips finds surprising in the first one of a data set. output: a file next to it."""
    video = first_video(dataset) or "toyworld:motion:0"
    say_next("visualize", "surprise", "--model", model, "--input", video, "--output", beside(output, "surprise.png"))


def beside(file: str | Path, name: str) -> Path:
    """A file or folder of this name next to an output; with a number if there is one already."""
    place, number = Path(file).with_name(name), 1
    while place.exists():
        number += 1
        place = Path(file).with_name(f"{Path(name).stem}-{number}{Path(name).suffix}")
    return place


def first_video(dataset: str) -> str | None:
    """A video of a data set, as `toto generate --video` takes it: a file, or a clip of the embedded world."""
    if dataset.startswith("toyworld:") and dataset.rpartition(":")[2].isdigit():
        return dataset
    if dataset.partition(":")[0] == "toyworld":
        return None if dataset.endswith("photos") else f"{dataset}:0" if "=" not in dataset else "toyworld:motion:0"
    if Path(dataset).is_file():
        return dataset if suffix_of(dataset) in VIDEOS else None
    for folder, folders, files in os.walk(dataset):
        folders.sort()
        for name in sorted(files):
            if suffix_of(name) in VIDEOS:
                return os.path.join(folder, name)
    return None


def _short(word: object) -> object:
    """A path below the working directory without it, as a user would type it."""
    if isinstance(word, (str, Path)) and os.path.isabs(word) and Path(word).is_relative_to(Path.cwd()):
        return Path(word).relative_to(Path.cwd())
    return word
