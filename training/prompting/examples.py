"""Examples of a task, images with their labels' numbers: exact ones of the embedded world, or pairs in a folder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenization.toyworld import MotionWorld, dense
from training.flags import require
from training.prompting.tasks import Task

FRAMES = 8  # of a clip, of which one moment is shown
SPAN = 128  # clips of an episode of segmentation, of which those with the same classes are taken
HELD_OUT_HUES = (4,)  # violet: in no training row of segmentation
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Example:
    """images: uint8 (inputs, R, R, 3). truth: float32 (labels, R, R), nan where it is unknown. name: of its source."""

    images: np.ndarray
    truth: np.ndarray
    name: str


class WorldExamples:
    """Episodes of `toyworld:motion`: examples of different clips, none of which is in two episodes.

    Args:
        held_out: hues that no clip of a segmentation episode has.
    """

    def __init__(self, task: Task, split: str, seed: int, resolution: int, held_out: tuple[int, ...] = ()):
        self.task, self.seed, self.held_out = task, seed, held_out
        self.world = MotionWorld(split, None, seed, resolution, FRAMES)
        self.name = f"toyworld:motion/{split}/{seed}"

    def episode(self, k: int) -> list[Example]:
        """The `task.groups` examples of episode k; the last one is the query of a test."""
        rng = np.random.default_rng([self.seed, self.task.prompt_id, k])
        if self.task.name == "segmentation":
            indices = self._same_classes(k)
        else:
            indices = range(k * self.task.groups, (k + 1) * self.task.groups)
        return [self._example(index, int(rng.integers(FRAMES - 1))) for index in indices]

    def _same_classes(self, k: int) -> list[int]:
        """Clips of which the first has two classes or more and the others no others, so that it shows all colours.

        If fewer than needed are among SPAN clips, the last one is taken again.
        """
        found: list[int] = []
        wanted: set[int] = set()
        for index in range(k * SPAN, (k + 1) * SPAN):
            hues = set(self.world.hues(index))
            if hues & set(self.held_out) or (len(hues) < 2 if not found else not hues <= wanted):
                continue
            wanted = wanted or hues
            found.append(index)
            if len(found) == self.task.groups:
                return found
        return found + [found[-1]] * (self.task.groups - len(found))

    def _example(self, index: int, time: int) -> Example:
        clip = self.world.clip(index)
        images = clip["video"][time : time + self.task.inputs]
        if self.task.name == "depth":
            truth = dense.depth(clip, time)[None]
        elif self.task.name == "flow":
            truth = np.moveaxis(clip["flow"][time], -1, 0)
        else:
            truth = dense.classes(clip, time)[None]
        return Example(images, truth.astype(np.float32), f"{clip['clip_id']}:{time}")


class PairExamples:
    """Episodes of a user's pairs of images and labels, from a folder or a table.

    A folder holds `image/NAME.png` with `label/NAME.png` or `.npy`, and `second/NAME.png` for flow. A table is a
    parquet file with the columns `image` and `label`, and `second` for flow. A label of depth or segmentation is an 8-
    or 16-bit PNG of one channel, or an array (H, W); of flow, an array (H, W, 2) in pixels to the second image. Zeros
    of a depth label, and numbers that are not finite, are unknown. Images are resized and cropped as everywhere, labels
    with them, without blur.

    Args:
        part: "train" leaves out every tenth pair, "test" takes only those, "all" takes every pair.
    Raises:
        FileNotFoundError: no such folder or file. ValueError: images without labels, or too few of them.
    """

    def __init__(self, task: Task, data: str | Path, seed: int, resolution: int, part: str = "all"):
        self.task, self.seed, self.resolution, self.data = task, seed, resolution, Path(data)
        self.name, self.kinds = str(data), ("image", "second", "label") if task.inputs == 2 else ("image", "label")
        found = self._table() if self.data.suffix == ".parquet" else self._folder()
        chosen = {"all": found, "train": [p for k, p in enumerate(found) if k % 10 != 9], "test": found[9::10]}
        self.pairs = chosen[part]
        require(
            len(self.pairs) >= task.groups,
            f"{data} holds {len(self.pairs)} pairs for this part, but a row of {task.name} needs {task.groups}; add "
            "some.",
        )

    def _folder(self) -> list[tuple[Path, ...]]:
        """Files of images and label, by name."""
        files = {kind: self._files(kind) for kind in self.kinds}
        for kind in self.kinds[1:]:
            unlike = sorted(files["image"].keys() ^ files[kind].keys())
            require(
                not unlike,
                f"{self.data}/image and {self.data}/{kind} do not hold the same names ({', '.join(unlike[:3])}); give "
                f"each image its {kind}.",
            )
        return [tuple(files[kind][name] for kind in self.kinds) for name in sorted(files["image"])]

    def _files(self, kind: str) -> dict[str, Path]:
        folder = self.data / kind
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}; --data holds image/ and label/ (and second/ for flow) with equal names."
            )
        known = (*IMAGES, ".npy") if kind == "label" else IMAGES
        return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in known}

    def _table(self) -> list[int]:
        """Numbers of the rows."""
        import datasets

        if not self.data.is_file():
            raise FileNotFoundError(f"There is no file {self.data}; check --data.")
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_parquet(str(self.data), cache_dir=cache, keep_in_memory=True)
        missing = [kind for kind in self.kinds if kind not in table.column_names]
        require(
            not missing,
            f"{self.data} has no column {' or '.join(missing)}, only {', '.join(table.column_names)}; rename them to "
            f"{', '.join(self.kinds)}.",
        )
        self.table = table
        return list(range(len(table)))

    def episode(self, k: int) -> list[Example]:
        """`task.groups` different pairs, drawn at random."""
        rng = np.random.default_rng([self.seed, self.task.prompt_id, k])
        return [self.read(number) for number in rng.permutation(len(self.pairs))[: self.task.groups]]

    def read(self, number: int) -> Example:
        """The pair with this number. Raises ValueError for a label of the wrong kind or size."""
        from PIL import Image

        from tokenization.image_processing_toto import resize_and_crop

        pair = self.pairs[number]
        if isinstance(pair, tuple):
            *images, label = pair
            name, found = str(label), _file_numbers(label, self.task)
            pictures = [Image.open(file) for file in images]
        else:
            row = self.table[pair]
            name, found = f"row {pair} of {self.data}", np.asarray(row["label"], np.float32)
            pictures = [row[kind] for kind in self.kinds[:-1]]
        truth = label_numbers(found, self.task, name)
        width, height = pictures[0].size
        require(
            truth.shape[1:] == (height, width),
            f"The label {name} has {truth.shape[2]} x {truth.shape[1]} numbers, but its image {width} x {height} "
            "pixels.",
        )
        shown = np.stack([resize_and_crop(picture.convert("RGB"), self.resolution) for picture in pictures])
        truth = resized(truth, self.resolution)
        if self.task.name == "flow":
            truth = truth * (self.resolution / min(width, height))
        return Example(shown, truth, name)


def _file_numbers(file: Path, task: Task) -> np.ndarray:
    """The numbers of a label file. Raises ValueError for a picture of flow."""
    from PIL import Image

    if file.suffix == ".npy":
        return np.load(file, allow_pickle=False).astype(np.float32)
    require(task.name != "flow", f"{file} is a picture; give flow as an array (.npy) of height x width x 2 pixels.")
    return np.asarray(Image.open(file)).astype(np.float32)


def label_numbers(found: np.ndarray, task: Task, name: str) -> np.ndarray:
    """Numbers (H, W) or (H, W, labels) -> float32 (labels, H, W), nan where unknown. ValueError for another shape."""
    found = found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)
    require(
        found.ndim == 3 and len(found) == len(task.labels),
        f"The label {name} has the shape {found.shape}; {task.name} has {len(task.labels)} numbers per pixel.",
    )
    found = np.where(np.isfinite(found), found, np.nan)
    return np.where(found > 0, found, np.nan) if task.name == "depth" else found


def resized(truth: np.ndarray, side: int) -> np.ndarray:
    """Numbers (n, H, W) -> (n, side, side), by the geometry of `resize_and_crop` without mixing neighbours."""
    height, width = truth.shape[1:]
    step = min(height, width) / side
    rows, columns = (
        ((np.arange(side) + 0.5) * step + (length - side * step) / 2).astype(int).clip(0, length - 1)
        for length in (height, width)
    )
    return truth[:, rows][:, :, columns]


def value_range(examples: PairExamples, task: Task) -> tuple[float, float]:
    """The clipping range of a folder's labels: 1st to 99th percentile of at most 100 of them; of flow, its size both
    ways; of classes, 0 to the largest one."""
    numbers = np.concatenate(
        [examples.read(k).truth.ravel() for k in range(min(100, len(examples.pairs)))], dtype=np.float32
    )
    numbers = numbers[np.isfinite(numbers)]
    require(len(numbers) > 0, f"The labels in {examples.data} hold no finite number; check them.")
    if task.name == "segmentation":
        return 0.0, float(numbers.max())
    if task.name == "flow":
        most = float(np.percentile(np.abs(numbers), 99)) or 1.0
        return -most, most
    low, high = (float(each) for each in np.percentile(numbers, [1, 99]))
    require(low < high, f"The labels in {examples.data} all have the value {low}; check them.")
    return low, high
