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

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokenization.image_processing_toto import CENTRE, limit_detail, resize_and_crop
from tokenization.sampling import Sampling
from tokenization.sources.dataset_rows import (
    content_of,
    files_of,
    find_columns,
    find_no_labels,
    larger_parquet,
    name_of,
    open_rows,
    random_rows,
)
from tokenization.video import Clip, read_windows, view_positions

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
    sampling: Sampling | None = None,
    *,
    limit: int | None = None,
    image_column: str | None = None,
    kind: str | None = None,
    shuffle_seed: int | None = None,
) -> ClipSource:
    """Clips of a dataset.

    Args:
        dataset: "toyworld" (or "toyworld:cluttered", ":film", or ":photos": pictures without labels),
            a folder (videos or images, in class folders or not, with train/ and validation/ folders, metadata or a
            README with configs), a .parquet or webdataset .tar file, one video or image file, or a Hub id.
        split: its split; None takes the only one.
        sampling: which frames and pixels. Toyworld has a clock of its own, and neither views nor detail.
        limit: stop after so many clips. Needed for the endless toyworld, where it is 2,000 by default.
        image_column: column with the images or videos; found by its type where there is only one.
        kind: "video" or "image" where a dataset holds both.
        shuffle_seed: take the clips of `limit` from items at random, so that a set sorted by class is sampled from all
            over: from folders, and from local parquet files larger than the limit. Files on the Hub, tar files and
            toyworld (which is mixed) are read from their start all the same. Items keep their names.
    Raises:
        FileNotFoundError: nothing there. ValueError: an unknown split or column, or nothing to read in the files.
    """
    if limit is not None and limit < 1:
        raise ValueError("The limit of clips must be 1 or more; omit it to take all.")
    if kind not in (None, "video", "image"):
        raise ValueError(f"kind must be video or image, not {kind!r}.")
    sampling = sampling or Sampling()
    if dataset.split(":")[0] == "toyworld":
        return _toyworld(dataset, split or "train", sampling, limit)
    items = _DatasetItems(dataset, split, sampling, limit, image_column, kind, shuffle_seed)
    return ClipSource(
        items.list,
        items.kind,
        items.labels,
        limit,
        num_shards=1 if items.drawn_from else items.num_files,
        lists_paths=items.lists_paths,
        text_labels=items.text_labels,
        no_labels=find_no_labels(items.rows.features),
    )


class _DatasetItems:
    """The items of a dataset's split, as `datasets` lists its rows; arguments as `open_source`.

    num_files: files that can be read one by one. drawn_from: the parquet files that random rows are drawn from.
    """

    def __init__(self, dataset, split, sampling: Sampling, limit, image_column, kind, shuffle_seed):
        self.dataset, self.split, self.sampling, self.limit = dataset, split, sampling, limit
        self.shuffle_seed = shuffle_seed
        self.cache = tempfile.TemporaryDirectory(prefix="toto-datasets-")  # lives as long as the rows may be read
        rows = open_rows(dataset, split, self.cache.name)
        rows = rows if rows.features is not None else rows._resolve_features()  # webdataset reads its first rows
        self.column, self.kind, self.labels, self.text_labels = find_columns(rows.features, dataset, image_column, kind)
        self.rows = rows.decode(False)  # bytes or paths, so that one bad file does not end the stream
        first = next(iter(self.rows), None)
        media = None if first is None else first[self.column]
        self.lists_paths = first is None or (isinstance(media, dict) and media.get("bytes") is None)
        self.num_files = 1 if self.lists_paths else self.rows.num_shards
        self.drawn_from: list[str] = []
        if shuffle_seed is not None and limit is not None and not self.lists_paths:
            self.drawn_from = larger_parquet(files_of(dataset, split, self.cache.name), self._rows_wanted)

    @property
    def _rows_wanted(self) -> int:
        """Rows that give `limit` clips, where each gives as many as it can be asked for."""
        views, crops = self.sampling.views, self.sampling.crops
        clips = crops if views is None else views[1] if self.kind == "image" else math.prod(views)
        return -(-self.limit // clips)

    def _numbered(self, shard: int) -> Iterator[tuple[int | str, dict]]:
        """(number, row) of a shard; "file:number" where there are several files."""
        if self.drawn_from:  # how many videos will do is unknown where a long one gives many clips
            is_counted = self.kind == "image" or self.sampling.views is not None
            at_a_time = self._rows_wanted if is_counted else 1
            for file, index, row in random_rows(self.drawn_from, self.shuffle_seed, at_a_time):
                yield (index if self.num_files == 1 else f"{file}:{index}"), row
            return
        listed = enumerate(self.rows if self.num_files == 1 else self.rows.shard(self.num_files, shard))
        if self.shuffle_seed is not None and self.lists_paths:
            listed = list(listed)
            np.random.default_rng(self.shuffle_seed).shuffle(listed)
        for index, row in listed:
            yield (index if self.num_files == 1 else f"{shard}:{index}"), row

    def list(self, shard: int) -> Iterator[Item]:
        for index, row in self._numbered(shard):
            media = row[self.column]
            name = name_of(media, row, self.dataset, self.split, index)
            values = {label: int(row[label]) for label in self.labels if row[label] is not None}
            values |= {label: str(row[label]) for label in self.text_labels if row[label] is not None}
            yield Item(name, partial(self._decoded, media, name, values), values)

    def _decoded(self, media, name: str, values: dict[str, int | str]) -> Iterator[Clip]:
        content, sampling = content_of(media), self.sampling
        if self.kind == "video":
            clips = read_windows(content, sampling, source=name)
        else:
            clips = _image_crops(content, name, sampling)
        for clip in clips:
            clip.labels = dict(values)
            if sampling.detail is not None:
                clip.frames = limit_detail(clip.frames, sampling.detail)
            yield clip


def _toyworld(dataset: str, split: str, sampling: Sampling, limit: int | None) -> ClipSource:
    from tokenization.toyworld.world import ToyWorld

    if sampling.detail is not None:
        raise ValueError("Toyworld is drawn at the resolution asked for; omit the detail.")
    if sampling.views is not None:
        raise ValueError("Toyworld is drawn as clips, which have one view each; omit the views.")
    if sampling.crops != 1:
        raise ValueError("Toyworld is endless; ask for more clips instead of more crops of each.")
    if limit is None:
        limit = ENDLESS_LIMIT
        print(f"toyworld is endless: taking {limit} clips (--max_clips takes another number).")
    variant = dataset.partition(":")[2] or "simple"
    if variant == "photos":
        return _photographs(dataset, split, sampling.resolution, sampling.seed, limit)
    drawn = {"resolution": sampling.resolution, "num_frames": sampling.num_frames}
    world = ToyWorld(split=split, variant=variant, seed=sampling.seed, **drawn)

    def rendered(index: int) -> Iterator[Clip]:
        item = world.clip(index)
        labels = {label: int(item[label]) for label in world.label_names}
        yield Clip(item["video"], str(item["clip_id"]), 0, TOYWORLD_FPS, labels)

    def list_items(_shard: int) -> Iterator[Item]:
        for index in range(limit):
            yield Item(f"{dataset}[{index}]", partial(rendered, index))

    return ClipSource(list_items, "video", dict(world.label_names), limit, expected=limit)


def _photographs(dataset: str, split: str, resolution: int, seed: int, limit: int) -> ClipSource:
    from tokenization.toyworld.items import check_split
    from tokenization.toyworld.photographs import photograph

    check_split(split)

    def rendered(index: int) -> Iterator[Clip]:
        yield Clip(photograph(split, seed, index, resolution)[None], f"toyworld/photos/{split}/{seed}/{index}")

    def list_items(_shard: int) -> Iterator[Item]:
        for index in range(limit):
            yield Item(f"{dataset}[{index}]", partial(rendered, index))

    return ClipSource(list_items, "image", {}, limit, expected=limit)


def _image_crops(content: bytes | str, name: str, sampling: Sampling) -> Iterator[Clip]:
    """The centre crop of an image, or `crops` random ones, fixed by seed and name, or those of its views."""
    seed = [sampling.seed, int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)]
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            generator = np.random.default_rng(seed)
            if sampling.views is not None:
                positions = [position for _, position in view_positions(1, sampling.views[1])]
            elif sampling.crops == 1:
                positions = [CENTRE]
            else:
                positions = [tuple(generator.random(2)) for _ in range(sampling.crops)]
            for position in positions:
                yield Clip(resize_and_crop(image, sampling.resolution, position)[None], name)
    except UnidentifiedImageError as error:  # whose own words hold an address in memory, unlike in every run
        raise ValueError("the image cannot be read: it is corrupt, or no image at all.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be read: {error}") from error
