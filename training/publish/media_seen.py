"""The media that a model was trained on, and media.json, the record that accompanies a model outside its run.

The media are read from the run's recipe.yaml and from the manifests and `source` columns of its shards. Labels do not
matter: test pictures used for pre-training without labels count as seen. The training data of the visual tokenizer are
not recorded. `evaluation.report.leakage` rejects scores on media that were seen.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tokenization.files import write_whole
from tokenization.shards.format import has_manifest
from tokenization.storage.copies import local_copy
from tokenization.storage.remote import Remote, is_remote, join

MEDIA_FILE = "media.json"
FORMAT = 1
MOST_NAMES = 2000  # items listed one by one in a record
# Folder and file names that stand for a split, and those that carry no information.
SPLITS = {name: name for name in ("train", "validation", "test")} | {"val": "validation", "valid": "validation"}
NO_NAMES = {"data", "default", "plain_text"}
FILES = {".parquet", ".tar"}


@dataclass(frozen=True)
class Media:
    """One source of training data.

    dataset: its name without folders (`identify`). items: files or rows as `toto tokenize` names them, without held-out
    ones; None if they are unknown, and then the whole split counts as seen. tokens: code tokens trained on.
    epochs: as counted by the run.
    """

    dataset: str
    split: str
    kind: str | None = None
    items: frozenset[str] | None = None
    tokens: float | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class Alias:
    """Media that are part of test sets with other names, as shell patterns for names returned by `identify`.

    items: pattern for file names without folders. If the items of a medium are unknown, a dataset that `dataset` names
    explicitly counts as a whole.
    """

    dataset: str
    items: str
    tests: str
    reason: str


_LART = "clips called lart_* are validation clips of Kinetics"
ALIASES = (
    Alias("*", "lart_*", "kinetics*", _LART),
    Alias("pretrain_clips", "lart_*", "kinetics*", _LART),
    Alias("davis_mini", "*", "davis*", "the sequences of DAVIS-2016 are among those of DAVIS-2017"),
    Alias("ucf101_sample", "*", "ucf101", "its clips are clips of UCF101"),
)


def identify(recorded: str, split: str) -> tuple[str, str]:
    """(name, split) of a dataset as given to a command: a Hub id, a folder or a file.

    The name is the last part of the path that is informative. A last part that names a split takes precedence over
    `split`, since such a folder or file is read whatever split is given ("media/k400/val",
    "test-00000-of-00001.parquet").
    """
    recorded = recorded.removeprefix("cater:").rpartition("://")[2]
    parts = [part for part in recorded.split(":")[0].split("/") if part not in ("", ".", "..")]
    while len(parts) > 1:
        is_file = PurePosixPath(parts[-1]).suffix in FILES
        stem = re.split(r"[-_.]", parts[-1])[0] if is_file else parts[-1]
        if not is_file and stem not in SPLITS and stem not in NO_NAMES:
            break
        split = stem if stem in SPLITS else split
        parts.pop()
    return parts[-1], SPLITS.get(split, split)


def public(name: str) -> str:
    """A name without local folders: the last part of a local path; a Hub id is unchanged."""
    is_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).exists())
    return Path(name).name if is_local else name


def media_seen(model: str | Path) -> list[Media] | None:
    """The media that a model was trained on; None without a record, as for third-party weights.

    Args:
        model: a run folder of `toto pretrain` or `toto finetune`, a checkpoint in one, or a folder or Hub repository
            with media.json.
    Raises:
        FileNotFoundError: if the shards of the run no longer exist and it has no media.json.
        ValueError: if media.json is damaged or has another format.
    """
    if is_remote(model):
        return _read_media(local_copy(join(model, MEDIA_FILE))) if Remote(model).info(MEDIA_FILE) else None
    path = Path(model)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    if (run / "recipe.yaml").is_file():
        return _of_run(run)
    file = path / MEDIA_FILE if path.exists() else _on_the_hub(str(model))
    return _read_media(Path(file)) if file is not None and Path(file).is_file() else None


def _on_the_hub(model: str) -> str | None:
    """Path of the media.json of a Hub repository; None if there is none, no connection, or no such repository."""
    from transformers.utils import cached_file

    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return None
    lacking = ("missing_entries", "gated_repo", "connection_errors")
    try:
        return cached_file(model, MEDIA_FILE, **{f"_raise_exceptions_for_{what}": False for what in lacking})
    except OSError:  # no such repository
        return None


def media_on_record(model: str | Path) -> list[dict] | None:
    """The "media" field of a result; None, with a printed line, if the shards of the run no longer exist."""
    try:
        return to_json(media_seen(model))
    except FileNotFoundError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"no record of the media that {model} was trained on: {error}")
        return None


def write_media(run: str | Path, folder: str | Path) -> Path:
    """Write the media of `run` to media.json in `folder`: before a model leaves its run, or shards are deleted."""
    text = json.dumps({"format": FORMAT, "media": to_json(_of_run(Path(run)))}, indent=1) + "\n"
    file = Path(folder) / MEDIA_FILE
    write_whole(file, lambda path: path.write_text(text))
    return file


def to_json(seen: list[Media] | None) -> list[dict] | None:
    """Media as stored under "media" in a result of `toto probe` or `toto finetune`, which may outlive the weights.

    Row numbers (`train[17]`) are stored as ranges, however many; other names as a list of at most MOST_NAMES. With more
    names the whole split counts as seen, and a separate entry lists those that a rule of `ALIASES` names.
    """
    if seen is None:
        return None
    found = []
    for media in seen:
        items = media.items if media.items is None else _short(media.items)
        found.append(asdict(media) | {"items": items})
        if media.items and items is None:
            named = sorted(name for name in media.items if any(_is_named(alias, name) for alias in ALIASES))
            found += [asdict(Media(media.dataset, media.split, media.kind)) | {"items": named}] if named else []
    return found


def from_json(rows: list[dict] | None) -> list[Media] | None:
    """The inverse of `to_json`. Raises ValueError for anything that it did not write."""
    if rows is None:
        return None
    try:
        media = [Media(**row) for row in rows]
        return [replace(seen, items=None if seen.items is None else _long(seen.items)) for seen in media]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"This record of media is damaged ({error}); write it again with write_media.") from error


def _short(items: frozenset[str]) -> list[str] | dict | None:
    """Row numbers as {"rows": split, "ranges": "0-18,20", "without_held_out"}, few names as a list, many as None."""
    from training.rows.shard_rows import is_held_out

    rows = [re.fullmatch(r"(.*)\[(\d+)\]", name) for name in items]
    if items and all(rows) and len({row[1] for row in rows}) == 1:
        split, numbers = rows[0][1], {int(row[2]) for row in rows}
        held_out = {number for number in range(max(numbers)) if is_held_out(f"{split}[{number}]")}
        # Held-out rows leave a gap about every twenty numbers; they can be derived from the names.
        without = bool(held_out) and not any(is_held_out(name) for name in items)
        ordered = sorted(numbers | held_out if without else numbers)
        starts = [n for n, before in zip(ordered, [None, *ordered], strict=False) if before is None or n != before + 1]
        ends = [n for n, after in zip(ordered, [*ordered[1:], None], strict=True) if after is None or n != after - 1]
        ranges = ",".join(f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
        return {"rows": split, "ranges": ranges, "without_held_out": without}
    return sorted(items) if len(items) <= MOST_NAMES else None


def _long(kept: list[str] | dict) -> frozenset[str]:
    from training.rows.shard_rows import is_held_out

    if isinstance(kept, list):
        return frozenset(kept)
    pairs = (map(int, part.split("-")) for part in kept["ranges"].split(","))
    names = (f"{kept['rows']}[{number}]" for first, last in pairs for number in range(first, last + 1))
    return frozenset(name for name in names if not (kept["without_held_out"] and is_held_out(name)))


def _is_named(alias: Alias, name: str) -> bool:
    """Whether a rule names this item in particular; a rule for all items of a dataset does not."""
    return alias.items != "*" and fnmatch(PurePosixPath(name).name, alias.items)


def _read_media(file: Path) -> list[Media]:
    try:
        content = json.loads(file.read_text())
        known = content["format"] == FORMAT
        media = from_json(content["media"]) if known else []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged; write it again from the run with training.publish.media_seen.write_media."
        ) from error
    if not known:
        raise ValueError(f"{file} has format {content['format']}, but this version reads {FORMAT}; write it again.")
    return media


def _of_run(run: Path) -> list[Media]:
    from training.args import DataArgs
    from training.flags import read_recipe

    recipe = read_recipe(run)
    parent = recipe.get("init_from") or recipe.get("model")  # toto pretrain, toto finetune
    found = []
    if parent:
        try:
            before = media_seen(parent)
        except FileNotFoundError:  # the shards of the parent run
            if not (run / MEDIA_FILE).is_file():
                raise
            before = None
        if before is None and (run / MEDIA_FILE).is_file():
            return _read_media(run / MEDIA_FILE)
        found = [Media(f"what {Path(parent).name} saw", "not recorded")] if before is None else before
    if recipe.get("dataset"):  # fine-tuning
        return [*found, Media(*identify(recipe["dataset"], recipe["train_split"]), kind=recipe.get("kind"))]
    if "rows_per_step" in recipe:  # toto prompt train
        kind = "image" if recipe.get("data") else "video"
        return [*found, Media(*identify(recipe.get("data") or "toyworld:motion", "train"), kind=kind)]
    settings = {key: recipe[key] for key in ("shards", "val_shards", "sources") if recipe.get(key)}
    shares, tokens = _last_shares(run)
    for source in DataArgs(**settings).mixture():
        if _is_gone(source):
            if (run / MEDIA_FILE).is_file():
                return _read_media(run / MEDIA_FILE)
            raise FileNotFoundError(
                f"The shards {source.data} are gone, so the training data of {run} are unknown; restore them (and "
                f"write {MEDIA_FILE} with media_seen.write_media before you delete shards)."
            )
        logged = shares.get(source.name, {})
        share = logged.get("share", source.weight)
        numbers = {"tokens": tokens and share * tokens, "epochs": logged.get("epochs")}
        found.append(replace(_of_source(source), **numbers))
    return found


def _is_gone(source) -> bool:
    """Whether a local folder no longer exists; runs make the paths of existing folders absolute."""
    return Path(source.data).is_absolute() and not Path(source.data).exists()


def _last_shares(run: Path) -> tuple[dict, float | None]:
    """({source: {share, epochs}}, tokens) at the last logged step."""
    file = run / "metrics.jsonl"
    rows = file.read_text().splitlines() if file.is_file() else []
    for line in reversed(rows):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the incomplete last line of a killed run
            continue
        if "learning_rate" in row:
            return row.get("sources", {}), row["tokens"]
    return {}, None


def _of_source(source) -> Media:
    """The media of one source of a mixture (`training.args.Source`)."""
    from training.rows.shard_rows import is_held_out, read_manifest

    if not source.is_shards:  # pixels, tokenized while training
        return Media(*identify(source.data, source.split), kind="video" if source.is_toyworld else source.kind)
    manifest = read_manifest(source.data)
    dataset, split = identify(manifest["dataset"], manifest["split"])
    if dataset == "toyworld":  # endless; its splits share no picture, so the split is enough
        return Media(dataset, split, manifest["kind"])
    if is_remote(source.data):  # every shard would have to be fetched; without items, the whole dataset counts
        return Media(dataset, split, manifest["kind"])
    names = _names(Path(source.data), manifest)
    if source.val_data is None:
        names = {name for name in names if not is_held_out(name)}
    return Media(dataset, split, manifest["kind"], of_split(names, manifest["split"], split))


def validated_on(source) -> tuple[str, Media]:
    """(dataset as it was given, the media) of the validation rows of a source of a mixture (`training.args.Source`).

    Raises:
        FileNotFoundError: nothing there has this name, such as shards that no longer exist.
    """
    from training.rows.shard_rows import is_held_out, read_manifest

    given = source.val_data or source.data
    if not has_manifest(given):
        is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", given)
        if not (source.is_toyworld or is_remote(given) or is_hub_id or Path(given).exists()):
            raise FileNotFoundError(f"There are no validation media {given}; tokenize them again if they were shards.")
        split = source.val_split or ("validation" if source.is_toyworld else source.split)
        return given, Media(*identify(given, split))  # of held-out pixels no items are listed: the split counts
    manifest = read_manifest(given)
    dataset, split = identify(manifest["dataset"], manifest["split"])
    if dataset == "toyworld" or is_remote(given):  # as in `_of_source`
        return manifest["dataset"], Media(dataset, split, manifest["kind"])
    names = _names(Path(given), manifest)
    if source.val_data is None:
        names = {name for name in names if is_held_out(name)}
    items = of_split(names, manifest["split"], split)
    return manifest["dataset"], Media(dataset, split, manifest["kind"], items)


def _names(folder: Path, manifest: dict) -> set[str]:
    """The names of the items in a folder of shards.

    The manifest has their number, and rows are in random order: where items have many rows, few shards name them all.
    """
    from training.rows.shard_rows import read_column

    names: set[str] = set()
    for shard in manifest["shards"]:
        if len(names) == manifest.get("kept"):
            break
        names.update(read_column(folder / shard["file"], "source"))
    return names


def of_split(names: Iterable[str], typed: str, split: str) -> frozenset[str]:
    """Names with the true split: rows are named typed[number] after the split that was given, which may differ."""
    return frozenset(split + name[len(typed) :] if name.startswith(f"{typed}[") else name for name in names)
