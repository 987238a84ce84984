"""What a model was trained on: the media of a run, and media.json, which goes with a model that leaves its run.

It is read from the run's recipe.yaml and from the manifests and `source` columns of its shards. Labels do not matter:
test pictures that a model was pre-trained on without labels are seen all the same. What its visual tokenizer was
trained on is not told. `evaluation.report.leakage` refuses scores on media that were seen.
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

MEDIA_FILE = "media.json"
FORMAT = 1
MOST_NAMES = 2000  # items that are listed one by one in a record
# Folder and file names that say which part of a data set they hold, or nothing at all.
SPLITS = {name: name for name in ("train", "validation", "test")} | {"val": "validation", "valid": "validation"}
NO_NAMES = {"data", "default", "plain_text"}
FILES = {".parquet", ".tar"}


@dataclass(frozen=True)
class Media:
    """One source of a training.

    dataset: its name without folders (`identify`). items: files or rows as `toto tokenize` names them, without those
    that were held out; None where they are not known, and the whole split counts. tokens: code tokens trained on.
    epochs: as the run counted them.
    """

    dataset: str
    split: str
    kind: str | None = None
    items: frozenset[str] | None = None
    tokens: float | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class Alias:
    """Media that are part of test sets of another name; patterns as of a shell, on names as `identify` gives them.

    items: of file names without folders. Where the items of a medium are not known, a named dataset counts whole.
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
    """(name, split) of a data set as a command was given it: a Hub id, a folder, a file.

    The name is the last part of the path that names anything; a last part that names a split wins over `split`, since a
    folder or file of its own is read under whatever split was typed ("media/k400/val", "test-00000-of-00001.parquet").
    """
    parts = [part for part in recorded.split(":")[0].split("/") if part not in ("", ".", "..")]
    while len(parts) > 1:
        is_file = PurePosixPath(parts[-1]).suffix in FILES
        stem = re.split(r"[-_.]", parts[-1])[0] if is_file else parts[-1]
        if not is_file and stem not in SPLITS and stem not in NO_NAMES:
            break
        split = stem if stem in SPLITS else split
        parts.pop()
    return parts[-1], SPLITS.get(split, split)


def media_seen(model: str | Path) -> list[Media] | None:
    """What a model was trained on; None where nobody kept a record, as of other people's weights.

    Args:
        model: a run folder of `toto pretrain` or `toto finetune`, a checkpoint in one, or a folder or Hub repository
            with media.json.
    Raises:
        FileNotFoundError: a run whose shards are gone, without media.json. ValueError: a damaged or other media.json.
    """
    path = Path(model)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    if (run / "recipe.yaml").is_file():
        return _of_run(run)
    file = path / MEDIA_FILE if path.exists() else _on_the_hub(str(model))
    return _read_media(Path(file)) if file is not None and Path(file).is_file() else None


def _on_the_hub(model: str) -> str | None:
    """The media.json of a Hub repository; None without one, without a connection, or where this is no name of one."""
    from transformers.utils import cached_file

    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return None
    lacking = ("missing_entries", "gated_repo", "connection_errors")
    try:
        return cached_file(model, MEDIA_FILE, **{f"_raise_exceptions_for_{what}": False for what in lacking})
    except OSError:  # no such repository
        return None


def media_on_record(model: str | Path) -> list[dict] | None:
    """What a result says of its model under "media". A run whose shards are gone is told of, and has no record."""
    try:
        return to_json(media_seen(model))
    except FileNotFoundError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"no record of what {model} saw: {error}")
        return None


def write_media(run: str | Path, folder: str | Path) -> Path:
    """Write what `run` saw as media.json into `folder`, for a model that leaves its run (or for a run, its shards)."""
    text = json.dumps({"format": FORMAT, "media": to_json(_of_run(Path(run)))}, indent=1) + "\n"
    file = Path(folder) / MEDIA_FILE
    write_whole(file, lambda path: path.write_text(text))
    return file


def to_json(seen: list[Media] | None) -> list[dict] | None:
    """Media as a result of `toto probe` or `toto finetune` carries them, under "media": results stay, weights may go.

    Row numbers (`train[17]`) are kept as ranges, whatever their number; other names as a list, up to MOST_NAMES of
    them. Of more, the whole split counts as seen, and a medium of its own lists those that a rule of `ALIASES` names.
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
    """What `to_json` made, read back. Raises ValueError for anything else."""
    if rows is None:
        return None
    try:
        media = [Media(**row) for row in rows]
        return [replace(seen, items=None if seen.items is None else _long(seen.items)) for seen in media]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"This record of media is damaged ({error}); write it again with write_media.") from error


def _short(items: frozenset[str]) -> list[str] | dict | None:
    """{"rows": split, "ranges": "0-18,20", "without_held_out"} of row numbers, a list of few names, None of many."""
    from training.rows.shard_rows import is_held_out

    rows = [re.fullmatch(r"(.*)\[(\d+)\]", name) for name in items]
    if items and all(rows) and len({row[1] for row in rows}) == 1:
        split, numbers = rows[0][1], {int(row[2]) for row in rows}
        held_out = {number for number in range(max(numbers)) if is_held_out(f"{split}[{number}]")}
        # Held-out rows leave a gap every twenty numbers or so, and follow from the names.
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
    """Whether a rule names this very item; a rule for all items of a data set names none."""
    return alias.items != "*" and fnmatch(PurePosixPath(name).name, alias.items)


def _read_media(file: Path) -> list[Media]:
    try:
        content = json.loads(file.read_text())
        known = content["format"] == FORMAT
        media = from_json(content["media"]) if known else []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged: write it again from the run (training.publish.media_seen.write_media)."
        ) from error
    if not known:
        raise ValueError(f"{file} has format {content['format']}, this version reads {FORMAT}: write it again.")
    return media


def _of_run(run: Path) -> list[Media]:
    from training.args import DataArgs, read_recipe

    recipe = read_recipe(run)
    parent = recipe.get("init_from") or recipe.get("model")  # of toto pretrain, of toto finetune
    found = []
    if parent:
        try:
            before = media_seen(parent)
        except FileNotFoundError:  # its shards
            if not (run / MEDIA_FILE).is_file():
                raise
            before = None
        if before is None and (run / MEDIA_FILE).is_file():
            return _read_media(run / MEDIA_FILE)
        found = [Media(f"what {Path(parent).name} saw", "not recorded")] if before is None else before
    if recipe.get("dataset"):  # fine-tuning
        return [*found, Media(*identify(recipe["dataset"], recipe["train_split"]), kind=recipe.get("kind"))]
    settings = {key: recipe[key] for key in ("shards", "val_shards", "sources") if recipe.get(key)}
    shares, tokens = _last_shares(run)
    for source in DataArgs(**settings).mixture():
        if _is_gone(source):
            if (run / MEDIA_FILE).is_file():
                return _read_media(run / MEDIA_FILE)
            raise FileNotFoundError(
                f"The shards {source.data} are gone, so what {run} was trained on is not known; put them back (and "
                f"keep a {MEDIA_FILE} in the run, by media_seen.write_media, before shards are deleted)."
            )
        told = shares.get(source.name, {})
        share = told.get("share", source.weight)
        numbers = {"tokens": tokens and share * tokens, "epochs": told.get("epochs")}
        found.append(replace(_of_source(source), **numbers))
    return found


def _is_gone(source) -> bool:
    """A local folder that was there when the run was begun, which made its path absolute."""
    return Path(source.data).is_absolute() and not Path(source.data).exists()


def _last_shares(run: Path) -> tuple[dict, float | None]:
    """({source: {share, epochs}}, tokens) of the last logged step."""
    file = run / "metrics.jsonl"
    rows = file.read_text().splitlines() if file.is_file() else []
    for line in reversed(rows):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the torn last line of a run that was killed
            continue
        if "learning_rate" in row:
            return row.get("sources", {}), row["tokens"]
    return {}, None


def _of_source(source) -> Media:
    """A source of a mixture (`training.args.Source`)."""
    from training.rows.shard_rows import is_held_out, read_column, read_manifest

    if not source.is_shards:  # pixels, tokenized while training
        return Media(*identify(source.data, source.split), kind="video" if source.is_toyworld else source.kind)
    manifest = read_manifest(source.data)
    dataset, split = identify(manifest["dataset"], manifest["split"])
    if dataset == "toyworld":  # endless; its splits share no picture, so the split says it all
        return Media(dataset, split, manifest["kind"])
    files = [Path(source.data) / shard["file"] for shard in manifest["shards"]]
    names = {name for file in files for name in read_column(file, "source").tolist()}
    if source.val_data is None:
        names = {name for name in names if not is_held_out(name)}
    return Media(dataset, split, manifest["kind"], of_split(names, manifest["split"], split))


def of_split(names: Iterable[str], typed: str, split: str) -> frozenset[str]:
    """Rows are called typed[number], after the split that was typed, which may not be the split that it is."""
    return frozenset(split + name[len(typed) :] if name.startswith(f"{typed}[") else name for name in names)
