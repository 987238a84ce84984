"""Rows of a dataset as `datasets` lists them: its splits, its columns, the names of rows, and rows at random.

Always streaming: `datasets` caches a local folder by its name alone and returns the old rows after a change.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".gif"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
# Integer columns that are not labels: a token shard's own columns, and facts about the media.
NO_LABELS = {"codes", "source", "start", "fps", "num_frames", "width", "height"}


def open_rows(dataset: str, split: str | None, cache_dir: str):
    """A streaming `datasets.IterableDataset` of the split.

    Raises:
        FileNotFoundError: there is no such dataset, or no media in it. ValueError: no such split, or no access.
    """
    from datasets import load_dataset

    name, options = _named(dataset, split)
    try:
        splits = load_dataset(name, streaming=True, cache_dir=cache_dir, **options)
    except FileNotFoundError as error:  # datasets' own "no files found" errors are of this kind
        if Path(dataset).exists():
            raise FileNotFoundError(f"{dataset} holds no videos, images, parquet or tar files.") from error
        raise FileNotFoundError(
            f"There is no folder {dataset}, and no such dataset on the Hub; check the name."
        ) from error
    except (ValueError, ConnectionError) as error:
        raise ValueError(f"The dataset {dataset} cannot be opened: {str(error).splitlines()[0]}") from error
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def files_of(dataset: str, split: str | None, cache_dir: str) -> list[str]:
    """The files that hold the rows of a local dataset which `open_rows` has opened; empty for one on the Hub."""
    from datasets import load_dataset_builder

    if not Path(dataset).exists():
        return []
    name, options = _named(dataset, split)
    files = load_dataset_builder(name, cache_dir=cache_dir, **options).config.data_files
    return list(next(iter(files.values())) if split is None else files[split])


def _named(dataset: str, split: str | None) -> tuple[str, dict]:
    """The first argument of `datasets.load_dataset` (a builder's name or the dataset's) and its options."""
    path = Path(dataset)
    options = {}
    if path.is_file():
        suffix = path.suffix.lower()
        builders = {".parquet": "parquet", ".tar": "webdataset"}
        builders |= dict.fromkeys(VIDEO_SUFFIXES, "videofolder") | dict.fromkeys(IMAGE_SUFFIXES, "imagefolder")
        if suffix not in builders:
            raise ValueError(f"{dataset} is neither a video, an image, a .parquet nor a .tar file.")
        options["data_files"] = {split or "train": [str(path.resolve())]}
        if builders[suffix].endswith("folder"):
            options["drop_labels"] = True
        name = builders[suffix]
    elif path.is_dir():
        if not any(file.is_file() for file in path.rglob("*")):
            raise FileNotFoundError(f"The folder {dataset} is empty; put videos, images, parquet or tar files into it.")
        name = str(path)
    elif dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or path.suffix:
        raise FileNotFoundError(f"There is no folder or file {dataset}; check the path.")
    else:
        name = dataset
    return name, options


def find_columns(features, dataset: str, image_column: str | None, kind: str | None):
    """The columns of a dataset: (media, kind, labels, text labels).

    media: column of the images or videos. kind: "video" or "image". labels: integer columns -> their class names
    (empty for plain integers). text labels: columns of text or booleans.

    Raises:
        ValueError: no such column, or no column of that kind.
    """
    from datasets import ClassLabel, Value

    types = {name: type(feature).__name__ for name, feature in features.items()}
    media = {name: types[name].lower() for name in types if types[name] in ("Image", "Video")}
    if image_column is not None and image_column not in types:
        raise ValueError(f"{dataset} has no column {image_column!r}; it has {', '.join(types)}.")
    column = image_column or next((name for name in media if kind in (None, media[name])), None)
    if column is None:
        raise ValueError(
            f"{dataset} has no {kind or 'image or video'} column; name one with image_column ({', '.join(types)})."
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
    """The name of a row in the manifest: a path inside the dataset's folder, a webdataset key, or split[row].

    Of several files: split[file:row].
    """
    path = media.get("path") if isinstance(media, dict) else None
    if path and Path(path).is_file():
        folder = Path(dataset).resolve()
        path = Path(path).resolve()
        return path.relative_to(folder).as_posix() if folder.is_dir() and path.is_relative_to(folder) else path.name
    return row.get("__key__", f"{split or 'row'}[{index}]")


def content_of(media) -> bytes | str:
    """The bytes of a file, or its local path."""
    if media is None:
        raise ValueError("the row is empty.")
    if isinstance(media, bytes):
        return media
    if media.get("bytes") is not None:
        return media["bytes"]
    if Path(media["path"]).is_file():
        return media["path"]
    from datasets.utils.file_utils import xopen

    with xopen(media["path"], "rb") as file:  # a file on the Hub or inside an archive
        return file.read()


def larger_parquet(files: list[str], items: int) -> list[str]:
    """The files, if they are local parquet files with more than `items` rows in all; else an empty list."""
    import pyarrow.parquet as pq

    local = all(file.endswith(".parquet") and Path(file).is_file() for file in files)
    return files if local and sum(pq.read_metadata(file).num_rows for file in files) > items else []


def random_rows(files: list[str], seed: int, at_a_time: int) -> Iterator[tuple[int, int, dict]]:
    """Every row of the files once, in random order, as (file number, row number in the file, row).

    The order is a seeded permutation of the rows of all files, sorted within each `at_a_time` rows of it. A row group
    (100 or 1,000 rows in files of pictures that `datasets` wrote) is then read once for all of its rows among them.
    Pass the number of rows that will be taken; 1 makes the order fully random and reads a row group for every row.
    """
    import pyarrow.parquet as pq

    ends = np.cumsum([pq.read_metadata(file).num_rows for file in files])
    order = np.random.default_rng(seed).permutation(ends[-1])
    for start in range(0, len(order), at_a_time):
        drawn = np.sort(order[start : start + at_a_time])
        for number, of_file in enumerate(np.split(drawn, np.searchsorted(drawn, ends[:-1]))):
            first = ends[number - 1] if number else 0
            for row, content in _read(files[number], of_file - first):
                yield number, row, content


def _read(file: str, rows: np.ndarray) -> Iterator[tuple[int, dict]]:
    """Rows of one file by their sorted numbers: (number, row)."""
    import pyarrow.parquet as pq

    if not len(rows):
        return
    with pq.ParquetFile(file) as parquet:
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = np.cumsum(counts)
        for group, inside in enumerate(np.split(rows, np.searchsorted(rows, ends[:-1]))):
            if len(inside):
                table = parquet.read_row_group(group).take(inside - (ends[group] - counts[group]))
                yield from zip(inside.tolist(), table.to_pylist(), strict=True)
