"""One argument, a stream of clips: the embedded world, a Hub id, a folder, parquet or webdataset files, all the same.

`datasets` lists the rows (always streaming: a cached folder is known by its name only, and returns old rows after a
change); videos are decoded by `video.py` and images by PIL, row by row, so that a bad one costs only itself. Listing
is cheap and decoding is not, so an `Item` puts the second off: any thread may do it, or nobody.
"""

import hashlib
import io
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .image_processing_toto import CENTRE, limit_detail, resize_and_crop
from .random_rows import larger_parquet, random_rows
from .video import Clip, read_windows, view_positions

VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".gif"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
# Integer columns that are no labels: a token shard's own columns, and facts about the media.
NO_LABELS = {"codes", "source", "start", "fps", "num_frames", "width", "height"}
ENDLESS_LIMIT = 2000
# The embedded world has no clock; its frames are taken to be as far apart as the paper's (stride 4 at 30 per second).
TOYWORLD_FPS = 7.5


@dataclass(frozen=True)
class Item:
    """A file or row of a source. `clips()` decodes it; ValueError or OSError where it is bad, or from there on.

    labels: those of its clips, as far as they are known without decoding (of toyworld they are not): numbers, and text
    of `text_labels`.
    """

    name: str
    clips: Callable[[], Iterator[Clip]]
    labels: dict[str, int | str] = field(default_factory=dict)


class ClipSource:
    """Iterable of `Clip`; made by `open_source`.

    kind: "video" or "image". skipped: [{"source", "why"}], growing while iterating; a video damaged half-way is there
    too, after the clips before the damage. items: files or rows read so far. label_names: column -> class names (empty
    for plain integers). text_labels: columns of text, or of true and false, whose values can serve as classes (shards
    do not keep them). no_labels: columns that one could take for labels, and why each is none. expected: number of
    clips where it is known beforehand, else None.

    `list_items(k)` gives the items of shard k of `num_shards` without decoding them, always in the same order. Sets of
    several parquet or tar files have a shard a file, so that reading one reads no byte of the others; all other sets
    are one shard. lists_paths: whether listing reads no media, only names of files (or nothing at all).
    """

    def __init__(
        self,
        list_items: Callable[[int], Iterator[Item]],
        kind: str,
        label_names: dict[str, list[str]],
        limit: int | None,
        *,
        num_shards: int = 1,
        lists_paths: bool = True,
        expected: int | None = None,
        text_labels: list[str] | None = None,
        no_labels: dict[str, str] | None = None,
    ):
        self.list_items, self.kind, self.label_names = list_items, kind, label_names
        self.limit, self.num_shards, self.lists_paths = limit, num_shards, lists_paths
        self.expected = expected if limit is None or expected is None else min(limit, expected)
        self.text_labels, self.no_labels = text_labels or [], no_labels or {}
        self.skipped: list[dict[str, str]] = []
        self.items = 0

    def __iter__(self) -> Iterator[Clip]:
        self.skipped, self.items, count = [], 0, 0
        for shard in range(self.num_shards):
            for item in self.list_items(shard):
                self.items += 1
                try:
                    for clip in item.clips():
                        yield clip
                        count += 1
                        if count == self.limit:
                            return
                except (ValueError, OSError) as error:
                    self.skipped.append({"source": item.name, "why": str(error)})


def open_source(
    dataset: str,
    split: str | None = "train",
    *,
    num_frames: int = 16,
    stride: int = 4,
    fps: float | None = None,
    resolution: int = 64,
    crops: int = 1,
    seed: int = 0,
    limit: int | None = None,
    image_column: str | None = None,
    kind: str | None = None,
    shuffle_seed: int | None = None,
    detail: int | None = None,
    views: tuple[int, int] | None = None,
) -> ClipSource:
    """Clips of a dataset.

    Args:
        dataset: "toyworld" (or "toyworld:cluttered", ":film", or ":photos": pictures without labels),
            a folder (videos or images, in class folders or not, with train/ and validation/ folders, metadata or a
            README with configs), a .parquet or webdataset .tar file, one video or image file, or a Hub id.
        split: its split; None takes the only one.
        num_frames, stride, fps, resolution: see `video.read_windows`. An image is a clip of one frame.
        crops: 1 takes the centre; K > 1 takes K random crops (and temporal offsets of a video) per item.
        seed: of the random crops, and of toyworld.
        limit: stop after so many clips. Needed for the endless toyworld, where it is 2,000 by default.
        image_column: column with the images or videos; found by its type where there is only one.
        kind: "video" or "image" where a dataset holds both.
        detail: see `limit_detail`; not for toyworld.
        views: (windows, crops) of each video, see `video.view_positions`; an image has its crops; not for toyworld.
        shuffle_seed: take the clips of `limit` from items at random, so that a set sorted by class is sampled from all
            over: from folders, and from local parquet files larger than the limit. Files on the Hub, tar files and
            toyworld (which is mixed) are read from their start all the same. Items keep their names.
    Raises:
        FileNotFoundError: nothing there. ValueError: an unknown split or column, or nothing to read in the files.
    """
    if limit is not None and limit < 1:
        raise ValueError("the limit of clips must be 1 or more, or left out.")
    if kind not in (None, "video", "image"):
        raise ValueError(f"kind must be video or image, not {kind!r}.")
    if dataset.split(":")[0] == "toyworld":
        if detail is not None:
            raise ValueError("toyworld is drawn at the resolution asked for: leave the detail out.")
        if views is not None:
            raise ValueError("toyworld is drawn as clips, which have one view each: leave the views out.")
        return _toyworld(dataset, split, num_frames, resolution, crops, seed, limit)
    cache = tempfile.TemporaryDirectory(prefix="toto-datasets-")
    rows = _open_rows(dataset, split, cache.name)
    rows = rows if rows.features is not None else rows._resolve_features()  # webdataset learns them from its first rows
    column, kind, labels, text_labels = _columns(rows.features, dataset, image_column, kind)
    rows = rows.decode(False)  # bytes or paths, so that one bad file does not end the stream
    read = {
        "num_frames": num_frames,
        "stride": stride,
        "fps": fps,
        "resolution": resolution,
        "crops": crops,
        "seed": seed,
        "views": views,
    }

    first = next(iter(rows), None)
    lists_paths = first is None or (isinstance(first[column], dict) and first[column].get("bytes") is None)
    num_files = 1 if lists_paths else rows.num_shards
    clips_an_item = crops if views is None else views[1] if kind == "image" else math.prod(views)
    files = []
    if shuffle_seed is not None and limit is not None and not lists_paths:
        files = larger_parquet(_files(dataset, split, cache.name), items=-(-limit // clips_an_item))
    num_shards = 1 if files else num_files

    def numbered(shard: int) -> Iterator[tuple[int | str, dict]]:
        """(number, row) of a shard; "file:number" where there are several files."""
        if files:  # how many videos will do is not known where a long one gives many clips
            is_counted = kind == "image" or views is not None
            for file, index, row in random_rows(files, shuffle_seed, -(-limit // clips_an_item) if is_counted else 1):
                yield (index if num_files == 1 else f"{file}:{index}"), row
            return
        listed = enumerate(rows if num_files == 1 else rows.shard(num_files, shard))
        if shuffle_seed is not None and lists_paths:
            listed = list(listed)
            np.random.default_rng(shuffle_seed).shuffle(listed)
        for index, row in listed:
            yield (index if num_files == 1 else f"{shard}:{index}"), row

    def decoded(media, name: str, values: dict[str, int | str]) -> Iterator[Clip]:
        content = _content(media)
        if kind == "video":
            clips = read_windows(content, source=name, **read)
        else:
            clips = _image_crops(content, name, resolution, crops, seed, views)
        for clip in clips:
            clip.labels = dict(values)
            if detail is not None:
                clip.frames = limit_detail(clip.frames, detail)
            yield clip

    def list_items(shard: int) -> Iterator[Item]:
        for index, row in numbered(shard):
            name = _name(row[column], row, dataset, split, index)
            values = {label: int(row[label]) for label in labels if row[label] is not None}
            values |= {label: str(row[label]) for label in text_labels if row[label] is not None}
            yield Item(name, partial(decoded, row[column], name, values), values)

    facts = {"num_shards": num_shards, "lists_paths": lists_paths, "no_labels": _no_labels(rows.features)}
    source = ClipSource(list_items, kind, labels, limit, text_labels=text_labels, **facts)
    source._cache = cache  # lives as long as the rows may be read
    return source


def _toyworld(dataset, split, num_frames, resolution, crops, seed, limit) -> ClipSource:
    from .toyworld import ToyWorld

    if crops != 1:
        raise ValueError("toyworld is endless: ask for more clips instead of more crops of each.")
    if limit is None:
        limit = ENDLESS_LIMIT
        print(f"toyworld is endless: taking {limit} clips (--max_clips takes another number).")
    variant = dataset.partition(":")[2] or "simple"
    if variant == "photos":
        return _photographs(dataset, split or "train", resolution, seed, limit)
    world = ToyWorld(split=split or "train", variant=variant, seed=seed, resolution=resolution, num_frames=num_frames)

    def rendered(index: int) -> Iterator[Clip]:
        item = world.clip(index)
        labels = {label: int(item[label]) for label in world.label_names}
        yield Clip(item["video"], str(item["clip_id"]), 0, TOYWORLD_FPS, labels)

    def list_items(_shard: int) -> Iterator[Item]:
        for index in range(limit):
            yield Item(f"{dataset}[{index}]", partial(rendered, index))

    return ClipSource(list_items, "video", dict(world.label_names), limit, expected=limit)


def _photographs(dataset: str, split: str, resolution: int, seed: int, limit: int) -> ClipSource:
    from .toyworld_items import check_split
    from .toyworld_photos import photograph

    check_split(split)

    def rendered(index: int) -> Iterator[Clip]:
        yield Clip(photograph(split, seed, index, resolution)[None], f"toyworld/photos/{split}/{seed}/{index}")

    def list_items(_shard: int) -> Iterator[Item]:
        for index in range(limit):
            yield Item(f"{dataset}[{index}]", partial(rendered, index))

    return ClipSource(list_items, "image", {}, limit, expected=limit)


def _open_rows(dataset: str, split: str | None, cache_dir: str):
    """A streaming `datasets.IterableDataset` of the split."""
    from datasets import load_dataset

    name, options = _named(dataset, split)
    try:
        splits = load_dataset(name, streaming=True, cache_dir=cache_dir, **options)
    except FileNotFoundError as error:  # datasets' own "no files found" errors are of this kind
        if Path(dataset).exists():
            raise FileNotFoundError(f"{dataset} holds no videos, images, parquet or tar files.") from error
        raise FileNotFoundError(f"there is no folder {dataset}, nor such a dataset on the Hub.") from error
    except (ValueError, ConnectionError) as error:
        raise ValueError(f"the dataset {dataset} cannot be opened: {str(error).splitlines()[0]}") from error
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}: it has {', '.join(splits)}.")
    return splits[split]


def _files(dataset: str, split: str | None, cache_dir: str) -> list[str]:
    """The files behind the rows of a local dataset that `_open_rows` has opened; none of one on the Hub."""
    from datasets import load_dataset_builder

    if not Path(dataset).exists():
        return []
    name, options = _named(dataset, split)
    files = load_dataset_builder(name, cache_dir=cache_dir, **options).config.data_files
    return list(next(iter(files.values())) if split is None else files[split])


def _named(dataset: str, split: str | None) -> tuple[str, dict]:
    """What `datasets` calls it: a builder's name or the dataset's, and its options."""
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
            raise FileNotFoundError(f"the folder {dataset} is empty: put videos, images, parquet or tar files into it.")
        name = str(path)
    elif dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or path.suffix:
        raise FileNotFoundError(f"there is no folder or file {dataset}.")
    else:
        name = dataset
    return name, options


def _columns(features, dataset: str, image_column: str | None, kind: str | None):
    """(column of the media, "video" | "image", label columns with their class names, none for plain integers, and
    columns of text or of true and false)."""
    from datasets import ClassLabel, Value

    types = {name: type(feature).__name__ for name, feature in features.items()}
    media = {name: types[name].lower() for name in types if types[name] in ("Image", "Video")}
    if image_column is not None and image_column not in types:
        raise ValueError(f"{dataset} has no column {image_column!r}: it has {', '.join(types)}.")
    column = image_column or next((name for name in media if kind in (None, media[name])), None)
    if column is None:
        raise ValueError(
            f"{dataset} has no {kind or 'image or video'} column: name one with image_column ({', '.join(types)})."
        )
    labels, text_labels = {}, []
    for name, feature in features.items():
        if name in NO_LABELS or name == column or name.startswith("__"):  # webdataset's key and address of a row
            continue
        if isinstance(feature, ClassLabel):
            labels[name] = list(feature.names)
        elif isinstance(feature, Value) and "int" in feature.dtype:
            labels[name] = []
        elif isinstance(feature, Value) and feature.dtype in ("string", "large_string", "bool"):
            text_labels.append(name)
    return column, kind or media.get(column, "image"), labels, text_labels


def _no_labels(features) -> dict[str, str]:
    """Columns that could be meant as labels and are none: why, in words."""
    from datasets import ClassLabel, Value

    found = {}
    for name, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(inner, ClassLabel) or (isinstance(inner, Value) and "int" in inner.dtype):
            found[name] = f"{name!r} holds several labels a row, and a label is one class here"
        elif isinstance(feature, Value) and "float" in feature.dtype:
            found[name] = f"{name!r} holds fractions, and a label is a whole number"
    return found


def _name(media, row: dict, dataset: str, split: str | None, index: int | str) -> str:
    """What the manifest calls a row: a path inside the dataset's folder, a webdataset key, split[row], or, of several
    files, split[file:row]."""
    path = media.get("path") if isinstance(media, dict) else None
    if path and Path(path).is_file():
        folder = Path(dataset).resolve()
        path = Path(path).resolve()
        return path.relative_to(folder).as_posix() if folder.is_dir() and path.is_relative_to(folder) else path.name
    return row.get("__key__", f"{split or 'row'}[{index}]")


def _content(media) -> bytes | str:
    """Bytes of a file, or its local path."""
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


def _image_crops(
    content: bytes | str, name: str, resolution: int, crops: int, seed: int, views: tuple[int, int] | None
) -> Iterator[Clip]:
    """The centre crop of an image, or `crops` random ones, fixed by seed and name, or those of its views."""
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            generator = np.random.default_rng([seed, int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)])
            if views is not None:
                positions = [position for _, position in view_positions(1, views[1])]
            else:
                positions = [CENTRE if crops == 1 else tuple(generator.random(2)) for _ in range(crops)]
            for position in positions:
                yield Clip(resize_and_crop(image, resolution, position)[None], name)
    except UnidentifiedImageError as error:  # whose own words hold an address in memory, unlike in every run
        raise ValueError("the image cannot be read: it is corrupt, or no image at all.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be read: {error}") from error
