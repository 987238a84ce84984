"""A stream of clips from the embedded world, a Hub id, a folder, or parquet, arrow or webdataset files.

We list the rows of local data and `datasets` those of the Hub; videos are decoded by `video.py` and images by PIL, one
row at a time, so that a damaged file affects no other. Listing is cheap and decoding is not, so an `Item` is decoded
later, by any thread or not at all.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from tokenization.image_processing_toto import limit_detail
from tokenization.sampling import Sampling
from tokenization.sources.cater import folder_of, open_cater
from tokenization.sources.dataset_rows import (
    Rows,
    content_of,
    find_columns,
    find_no_labels,
    name_of,
    open_hub,
)
from tokenization.sources.kinds import MAY_MOVE, suffix_of
from tokenization.sources.local import open_local
from tokenization.sources.named import require_on_hub
from tokenization.sources.pictures import frame_windows, image_crops
from tokenization.sources.tables import count_rows, random_rows
from tokenization.storage.remote import is_remote
from tokenization.video import Clip, read_windows

ENDLESS_LIMIT = 2000
# The embedded world has no clock; its time step is taken to be the paper's (stride 4 at 30 frames per second).
TOYWORLD_FPS = 7.5


def every(_index: int) -> bool:
    """All items are wanted."""
    return True


@dataclass(frozen=True)
class Item:
    """A file or row of a source.

    clips: decodes the item; raises ValueError or OSError if it is damaged, after yielding the clips before the damage.
    labels: of its clips, numbers, or text for columns in `text_labels`. Empty for toyworld, whose labels are known
    after decoding.
    """

    name: str
    clips: Callable[[], Iterator[Clip]]
    labels: dict[str, int | str] = field(default_factory=dict)


def config_of(dataset: str, config_name: str | None) -> str | None:
    """The configuration of one of several datasets for which `config_name` is given; toyworld has none."""
    return None if dataset.split(":")[0] == "toyworld" else config_name


class ClipSource:
    """Iterable of `Clip`; made by `open_source`.

    Attributes:
        kind: "video" or "image".
        skipped: [{"source", "why"}] of the items that could not be read, or not completely; it grows while iterating.
        items: files or rows read so far.
        label_names: column -> class names (empty for plain integers).
        text_labels: columns of text or booleans whose values can serve as classes (shards do not keep them).
        no_labels: columns that look like labels but cannot serve as such -> the reason.
        expected: number of clips if it is known beforehand, else None.
        list_items: `list_items(k)` gives the items of shard k of `num_shards`, not decoded, always in the same order.
            `list_items(k, wanted)` gives None for items whose number `wanted` does not accept, and looks nothing up
            for them.
        num_shards: datasets of several parquet or tar files have one shard per file, so that reading one shard reads
            nothing of the others; all other datasets are one shard.
        lists_paths: whether listing reads only names of files and no media.
        split_name: the split's own name in the dataset ("val", where "validation" was asked for); None for toyworld.
        clips_each: clips of an item, at most; None of videos whose windows are as many as their length allows.
        listed: number of items, if it is known without reading them, else None.
        found: lines that report how many files of which kinds a folder has, how many are read, and which are left.
        left: reason -> {suffix: number of files}, of the files of a folder that are not read.
    """

    def __init__(
        self,
        list_items: Callable[..., Iterator[Item | None]],
        kind: str,
        label_names: dict[str, list[str]],
        limit: int | None,
        *,
        num_shards: int = 1,
        lists_paths: bool = True,
        expected: int | None = None,
        text_labels: list[str] | None = None,
        no_labels: dict[str, str] | None = None,
        rows: Rows | None = None,
        clips_each: int | None = 1,
    ):
        self.clips_each = clips_each
        self.list_items, self.kind, self.label_names = list_items, kind, label_names
        self.limit, self.num_shards, self.lists_paths = limit, num_shards, lists_paths
        self.expected = expected if limit is None or expected is None else min(limit, expected)
        self.text_labels, self.no_labels = text_labels or [], no_labels or {}
        self.split_name, self.listed = (None, None) if rows is None else (rows.split, rows.count)
        self.found, self.left = ([], {}) if rows is None else (rows.found, rows.left)
        self._rows = rows
        self.skipped: list[dict[str, str]] = []
        self.items = 0

    def count_items(self) -> int | None:
        """The number of items, from names of files or from the ends of tables; None if neither has it."""
        if self._rows is None:
            return self.expected
        if self._rows.count is None and self._rows.tables:
            return sum(map(count_rows, self._rows.tables))
        return self._rows.count

    def count_clips(self) -> int | None:
        """The number of clips within the limit, if no item is damaged; None if it is not known before decoding."""
        items = self.count_items()
        if items is None or self.clips_each is None:
            return None
        return items * self.clips_each if self.limit is None else min(self.limit, items * self.clips_each)

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
    sampling: Sampling | None = None,
    *,
    limit: int | None = None,
    image_column: str | None = None,
    kind: str | None = None,
    shuffle_seed: int | None = None,
    config_name: str | None = None,
    decoder: str = "pyav",
) -> ClipSource:
    """The clips of a dataset.

    Args:
        dataset: "toyworld" (or "toyworld:cluttered", ":film", ":motion", ":cups", or ":photos", which are pictures
            without labels; "toyworld:motion:NAME=NUMBER,..." sets rules of MotionRules, likewise for cups),
            "cater:FOLDER" (CATER's localisation task, see `cater.open_cater`), a folder (of videos or images, with
            or without class folders, splits, metadata or a README with configurations; of parquet or tar files; or
            saved by `datasets.save_to_disk`), a .parquet, .arrow or webdataset .tar file, one video or image file, or
            a Hub id. A folder or file may be under a URL (s3://, gs://, hf://, https://). Names are data:
            docs/datasets.md says what is read of a folder.
        split: its name; None takes the only split. Of a folder, a direct subfolder: train, validation (also as val,
            valid or dev), test, or any other that is named here. A folder without such subfolders is the split train.
        sampling: which frames and pixels. Toyworld ignores stride and fps, and supports neither views nor detail.
        limit: maximum number of clips. 2,000 by default for toyworld, which is endless.
        image_column: column of the images or videos; default: the first of that type.
        kind: "video" or "image", for a dataset that holds both; default: that of most files of a folder, or of the
            first such column. An animated picture (GIF, PNG) is a clip, or among images the image of its first frame.
        shuffle_seed: draw the `limit` clips from random items, so that a dataset sorted by class is sampled
            throughout. This applies to folders, and to local parquet files with more rows than the limit needs. Files
            on the Hub, tar files and toyworld (which is mixed) are always read from their start. Items keep their
            names.
        config_name: configuration of a dataset that has several.
        decoder: of videos, see `video.read_windows`.
    Raises:
        FileNotFoundError: there is no such dataset. ValueError: an unknown split, configuration or column, or files
            without media.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"The limit of clips is {limit}; it must be at least 1, or omitted to take all.")
    if kind not in (None, "video", "image"):
        raise ValueError(f"kind is {kind!r}; it must be video or image.")
    sampling = sampling or Sampling()
    if dataset.split(":")[0] == "toyworld":
        if config_name is not None:
            raise ValueError("Toyworld has no configurations; leave config_name out.")
        return _toyworld(dataset, split or "train", sampling, limit)
    cache = None
    if folder := folder_of(dataset):
        if config_name is not None:
            raise ValueError(f"{dataset} has no configurations; leave config_name out.")
        rows = open_cater(folder, split)
    elif is_remote(dataset) or Path(dataset).exists():
        rows = open_local(dataset, split, kind, image_column, config_name)
    else:
        require_on_hub(dataset, "dataset")
        cache = tempfile.TemporaryDirectory(prefix="toto-datasets-")
        rows = open_hub(dataset, split, config_name, cache.name)
    items = _DatasetItems(rows, dataset, split, sampling, limit, image_column, kind, shuffle_seed, cache)
    items.decoder = decoder
    return ClipSource(
        items.list,
        items.kind,
        items.labels,
        limit,
        num_shards=1 if items.drawn_from else items.num_files,
        lists_paths=items.lists_paths,
        text_labels=items.text_labels,
        no_labels=find_no_labels(rows.features),
        rows=rows,
        clips_each=items.clips_each,
    )


class _DatasetItems:
    """The items of a dataset's split, from its rows; other arguments as in `open_source`.

    cache: folder of what `datasets` downloads, which lives as long as the rows may be read. num_files: number of files
    that can be read separately. drawn_from: files of tables from which rows are drawn at random.
    """

    def __init__(self, rows: Rows, dataset, split, sampling: Sampling, limit, image_column, kind, shuffle_seed, cache):
        self.rows, self.dataset, self.sampling, self.limit = rows, dataset, sampling, limit
        self.split = split and rows.split
        self.shuffle_seed, self.cache = shuffle_seed, cache
        self.column, self.kind, self.labels, self.text_labels = find_columns(rows.features, dataset, image_column, kind)
        self.lists_paths, self.num_files = rows.lists_paths, rows.num_shards
        self.columns = [self.column, *self.labels, *self.text_labels, "fps", "__key__"]
        self.drawn_from: list[str] = []
        self.decoder = "pyav"
        if shuffle_seed is not None and limit is not None and sum(map(count_rows, rows.tables)) > self._rows_wanted:
            self.drawn_from = rows.tables

    @property
    def clips_each(self) -> int | None:
        """The clips of a row, as `sampling` asks for; None of videos in windows, of which the length decides."""
        views = self.sampling.views
        if views is not None:
            return views[1] if self.kind == "image" else math.prod(views)
        return self.sampling.crops if self.kind == "image" else None

    @property
    def _rows_wanted(self) -> int:
        """Number of rows that give `limit` clips if each video gives at least one window."""
        return -(-self.limit // (self.clips_each or self.sampling.crops))

    def _numbered(self, shard: int) -> Iterator[tuple[int | str, dict]]:
        """(number, row) of a shard; the number is "file:number" if there are several files."""
        if self.drawn_from:  # a long video gives many clips, so the number of videos needed is unknown
            is_counted = self.kind == "image" or self.sampling.views is not None
            at_a_time = self._rows_wanted if is_counted else 1
            for file, index, row in random_rows(self.drawn_from, self.columns, self.shuffle_seed, at_a_time):
                yield (index if self.num_files == 1 else f"{file}:{index}"), row
            return
        listed = enumerate(self.rows.read(shard, self.columns))
        if self.shuffle_seed is not None and self.lists_paths:
            listed = list(listed)
            np.random.default_rng(self.shuffle_seed).shuffle(listed)
        for index, row in listed:
            yield (index if self.num_files == 1 else f"{shard}:{index}"), row

    def list(self, shard: int, wanted: Callable[[int], bool] = every) -> Iterator[Item | None]:
        for number, (index, row) in enumerate(self._numbered(shard)):
            if not wanted(number):
                yield None
                continue
            media = row.get(self.column)
            name = name_of(media, row, self.dataset, self.split, index)
            values = {label: int(row[label]) for label in self.labels if row.get(label) is not None}
            values |= {label: str(row[label]) for label in self.text_labels if row.get(label) is not None}
            yield Item(name, partial(self._decoded, media, name, values, row.get("fps")), values)

    def _decoded(self, media, name: str, values: dict[str, int | str], rate) -> Iterator[Clip]:
        for clip in self._clips(media, name, rate):
            clip.labels = dict(values)
            if self.sampling.detail is not None:
                clip.frames = limit_detail(clip.frames, self.sampling.detail)
            yield clip

    def _clips(self, media, name: str, rate) -> Iterator[Clip]:
        if isinstance(media, (list, tuple)):
            rate = float(rate) if isinstance(rate, (int, float)) and rate > 0 else None
            return frame_windows([content_of(frame) for frame in media], name, self.sampling, rate)
        content = content_of(media)
        if self.kind == "image":
            return image_crops(content, name, self.sampling)
        if isinstance(content, str) and suffix_of(content) in MAY_MOVE:  # FFmpeg takes "%d" in the name of a picture
            content = Path(content).read_bytes()  # for the number of a sequence
        return read_windows(content, self.sampling, source=name, decoder=self.decoder)


def _toyworld(dataset: str, split: str, sampling: Sampling, limit: int | None) -> ClipSource:
    from tokenization.toyworld import open_world

    if sampling.detail is not None:
        raise ValueError("Toyworld is drawn at the requested resolution; omit the detail.")
    if sampling.views is not None:
        raise ValueError("Toyworld is drawn as clips, which have one view each; omit the views.")
    if sampling.crops != 1:
        raise ValueError("Toyworld is endless; take more clips instead of more crops of each.")
    if limit is None:
        limit = ENDLESS_LIMIT
        print(f"toyworld is endless: taking {limit} clips (--max_clips sets another number).")
    variant = dataset.partition(":")[2] or "simple"
    if variant == "photos":
        return _photographs(dataset, split, sampling.resolution, sampling.seed, limit)
    world = open_world(variant, split, sampling.seed, sampling.resolution, sampling.num_frames)

    def rendered(index: int) -> Iterator[Clip]:
        item = world.clip(index)
        labels = {label: int(item[label]) for label in world.label_names}
        yield Clip(item["video"], str(item["clip_id"]), 0, TOYWORLD_FPS, labels)

    def list_items(_shard: int, wanted: Callable[[int], bool] = every) -> Iterator[Item | None]:
        for index in range(limit):
            yield Item(f"{dataset}[{index}]", partial(rendered, index)) if wanted(index) else None

    return ClipSource(list_items, "video", dict(world.label_names), limit, expected=limit)


def _photographs(dataset: str, split: str, resolution: int, seed: int, limit: int) -> ClipSource:
    from tokenization.toyworld.items import check_split
    from tokenization.toyworld.photographs import photograph

    check_split(split)

    def rendered(index: int) -> Iterator[Clip]:
        yield Clip(photograph(split, seed, index, resolution)[None], f"toyworld/photos/{split}/{seed}/{index}")

    def list_items(_shard: int, wanted: Callable[[int], bool] = every) -> Iterator[Item | None]:
        for index in range(limit):
            yield Item(f"{dataset}[{index}]", partial(rendered, index)) if wanted(index) else None

    return ClipSource(list_items, "image", {}, limit, expected=limit)
