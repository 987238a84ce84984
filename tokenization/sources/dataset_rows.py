"""Rows of a data set: those of the Hub as `datasets` lists them, and the columns, labels and names of any rows.

Always streaming: `datasets` caches what it downloads by name.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenization.sources.kinds import PICTURES, VIDEOS, suffix_of
from tokenization.sources.metadata import choose_config
from tokenization.sources.remote import fetched
from tokenization.sources.tars import columns_of

# Integer columns that are not labels: a token shard's own columns, and facts about the media.
NO_LABELS = {"codes", "source", "start", "fps", "num_frames", "width", "height", "original_width", "original_height"}


@dataclass
class Rows:
    """The rows of one split of a data set, not decoded.

    Fields:
        features: column -> `datasets` feature.
        read: (shard, columns) -> its rows, always in the same order; columns that it was not asked for may be there.
        split: the name of the split in the data set.
        num_shards: shards that can be read separately. lists_paths: whether reading touches no media.
        tables: one local parquet or arrow file per shard, whose rows can be drawn at random.
        count: number of rows, if known.
        found: lines that report how many files of which kinds were found, read and left.
        left: reason -> {suffix: number of files that are not read}.
    """

    features: dict
    read: Callable[[int, list[str]], Iterator[dict]]
    split: str
    num_shards: int = 1
    lists_paths: bool = False
    tables: list[str] = field(default_factory=list)
    count: int | None = None
    found: list[str] = field(default_factory=list)
    left: dict[str, dict[str, int]] = field(default_factory=dict)


def open_hub(dataset: str, split: str | None, config_name: str | None, cache_dir: str) -> Rows:
    """The rows of a split of a data set on the Hub.

    Raises:
        FileNotFoundError: there is no such data set. ValueError: no such split or configuration, or no access.
    """
    from datasets import load_dataset

    try:
        splits = load_dataset(dataset, config_name, streaming=True, cache_dir=cache_dir)
    except FileNotFoundError as error:  # datasets' own "no files found" errors are of this kind
        raise FileNotFoundError(
            f"There is no folder {dataset}, and no such dataset on the Hub; check the name."
        ) from error
    except (ValueError, ConnectionError) as error:
        if listed := re.search(r"(?:available configs|Available): (\[.*?\])", str(error)):
            choose_config(ast.literal_eval(listed[1]), config_name, dataset)
        raise ValueError(f"The dataset {dataset} cannot be opened: {str(error).splitlines()[0]}") from error
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(splits)}.")
    rows = splits[split]
    rows = rows if rows.features is not None else rows._resolve_features()  # webdataset reads its first rows
    undecoded = rows.decode(False)  # bytes or paths, so that one bad file does not end the stream
    shards = rows.num_shards
    first = next(iter(undecoded), None)
    media = None if first is None else next((first[name] for name in media_columns(rows.features)), None)
    lists_paths = first is None or (isinstance(media, dict) and media.get("bytes") is None)

    def read(shard: int, _wanted) -> Iterator[dict]:
        return map(columns_of, undecoded if lists_paths or shards == 1 else undecoded.shard(shards, shard))

    return Rows(columns_of(rows.features), read, split, 1 if lists_paths else shards, lists_paths)


def is_struct(feature) -> bool:
    """Whether a column has the fields of an image or video, in a table that was not written by `datasets`."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def is_frame_list(feature) -> bool:
    """Whether a column holds lists of images, the frames of a clip."""
    inner = getattr(feature, "feature", None)
    inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else inner
    return type(inner).__name__ == "Image" or is_struct(inner)


def media_columns(features) -> dict[str, str]:
    """Column -> "video" or "image": images, videos, lists of images, and bytes in a column named after a suffix.

    In a table that was not written by `datasets`, bytes with a path are a video where the column's name says so.
    """
    from datasets import Value

    kinds = {}
    for name, feature in features.items():
        suffix, of = suffix_of(f"x.{name}"), type(feature).__name__
        if of in ("Image", "Video"):  # `datasets` takes .mpg for an image, and knows five suffixes of videos
            kinds[name] = "video" if suffix in VIDEOS else of.lower()
        elif is_frame_list(feature):
            kinds[name] = "video"
        elif is_struct(feature):
            kinds[name] = "video" if suffix in VIDEOS or "video" in name.lower() else "image"
        elif isinstance(feature, Value) and "binary" in feature.dtype and suffix in VIDEOS | PICTURES:
            kinds[name] = "video" if suffix in VIDEOS else "image"
    return kinds


def find_columns(features, dataset: str, image_column: str | None, kind: str | None):
    """The columns of a data set: (media, kind, labels, text labels).

    media: column of the images or videos. kind: "video" or "image". labels: integer columns -> their class names
    (empty for plain integers). text labels: columns of text or booleans.

    Raises:
        ValueError: no such column, or no column of that kind.
    """
    from datasets import ClassLabel, Value

    media = media_columns(features)
    if image_column is not None and image_column not in features:
        raise ValueError(f"{dataset} has no column {image_column!r}; it has {', '.join(features)}.")
    column = image_column or next((name for name in media if kind in (None, media[name])), None)
    if column is None:
        raise ValueError(
            f"{dataset} has no {kind or 'image or video'} column; name one with image_column ({', '.join(features)})."
        )
    labels, text_labels = {}, []
    for name, feature in features.items():
        if name in NO_LABELS or name == column or name.startswith("__"):  # webdataset's key and url of a row
            continue
        if isinstance(feature, ClassLabel):
            labels[name] = list(feature.names)
        elif isinstance(feature, Value) and "int" in feature.dtype:
            labels[name] = []
        elif isinstance(feature, Value) and feature.dtype in ("string", "large_string", "bool"):
            text_labels.append(name)
    return column, kind or media.get(column, "image"), labels, text_labels


def find_no_labels(features) -> dict[str, str]:
    """Columns that look like labels but cannot serve as such -> the reason."""
    from datasets import ClassLabel, Value

    found = {}
    for name, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(inner, ClassLabel) or (isinstance(inner, Value) and "int" in inner.dtype):
            found[name] = f"{name!r} holds several labels per row, but a label must be a single class"
        elif isinstance(feature, Value) and "float" in feature.dtype:
            found[name] = f"{name!r} holds fractions, but a label must be a whole number"
    return found


def name_of(media, row: dict, dataset: str, split: str | None, index: int | str) -> str:
    """The name of a row in the manifest: its key, a path inside the dataset's folder, or split[row].

    Of several files: split[file:row]. A path is taken as it was given: two links to one file are two items.
    """
    if row.get("__key__"):
        return row["__key__"]
    path = media.get("path") if isinstance(media, dict) else None
    if path and Path(path).is_file():
        folder, path = Path(os.path.abspath(dataset)), Path(os.path.abspath(path))
        return path.relative_to(folder).as_posix() if folder.is_dir() and path.is_relative_to(folder) else path.name
    return f"{split or 'row'}[{index}]"


def content_of(media) -> bytes | str:
    """The bytes of a file, or its local path; a file under a URL is copied to this machine."""
    if media is None:
        raise ValueError("the row is empty.")
    if isinstance(media, bytes):
        return media
    if isinstance(media, dict) and media.get("url"):
        return fetched(media["url"])
    if not isinstance(media, dict) or (media.get("bytes") is None and not media.get("path")):
        raise ValueError("the row holds no file.")
    if media.get("bytes") is not None:
        return media["bytes"]
    if Path(media["path"]).is_file():
        return media["path"]
    from datasets.utils.file_utils import xopen

    with xopen(media["path"], "rb") as file:  # a file on the Hub or inside an archive
        return file.read()
