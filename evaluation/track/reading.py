"""Videos with a mask for every frame: DAVIS-2016 and DAVIS-2017 as distributed, and the embedded world."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.track.metric import VOID
from training.flags import require

PICTURES = (".jpg", ".jpeg", ".png")
SIZES = ("480p", "Full-Resolution", "1080p")  # folders of one size in a root of DAVIS, the published one first
LISTS = ("2017", "480p", "2016", "")  # folders of ImageSets
FEWEST = 3  # frames; the first and the last one are not scored
TOY_CLIPS = 20


@dataclass
class Sequence:
    """A video with masks. size: (H, W). objects: ids 1..objects. fingerprint: changes with its frames and masks."""

    name: str
    size: tuple[int, int]
    num_frames: int
    objects: int
    fingerprint: str

    def frames(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames, uint8 (H, W, 3), with their object numbers, uint8 (H, W): 0 background, 255 void."""
        raise NotImplementedError


def toy_sequences(dataset: str, split: str | None, count: int | None, num_frames: int, resolution: int, seed: int):
    """The first clips of a variant of the embedded world. Raises ValueError for one that cannot be drawn."""
    from tokenization.toyworld import open_world

    variant = dataset.partition(":")[2] or "simple"
    require(variant != "photos", "toyworld:photos has images without motion; choose toyworld:motion.")
    require(num_frames >= FEWEST, f"--num_frames is {num_frames}; tracking needs {FEWEST} frames or more.")
    world = open_world(variant, split or "test", seed, resolution, num_frames)
    return [ToySequence.of(world, index, f"{dataset} {split} {seed}") for index in range(count or TOY_CLIPS)]


@dataclass
class ToySequence(Sequence):
    """A clip of the embedded world; its objects are those that the first frame shows, numbered anew from 1.

    What enters later is background, as in DAVIS; posts and walls are void and so background too.
    """

    world: object
    index: int

    @classmethod
    def of(cls, world, index: int, origin: str) -> ToySequence:
        size = (world.resolution, world.resolution)
        found = cls(f"clip-{index:04d}", size, world.num_frames, 0, "", world, index)
        clip = world.clip(index)
        found.objects = len(found.shown(clip["masks"]))
        digest = hashlib.sha256(clip["video"].tobytes() + clip["masks"].tobytes())
        found.fingerprint = f"{origin} {digest.hexdigest()[:16]}"
        return found

    @staticmethod
    def shown(masks: np.ndarray) -> list[int]:
        return [int(number) for number in np.unique(masks[0]) if number not in (0, VOID)]

    def frames(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        clip = self.world.clip(self.index)
        renumber = np.zeros(256, dtype=np.uint8)
        renumber[VOID] = VOID
        for number, old in enumerate(self.shown(clip["masks"]), 1):
            renumber[old] = number
        yield from zip(clip["video"], renumber[clip["masks"]], strict=True)


@dataclass
class FolderSequence(Sequence):
    """A sequence of DAVIS. is_binary: masks of DAVIS-2016, grey pictures whose 255 is the object and not void."""

    pictures: list[Path]
    masks: list[Path]
    is_binary: bool

    def frames(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for picture, mask in zip(self.pictures, self.masks, strict=True):
            with Image.open(picture) as image:
                frame = np.asarray(image.convert("RGB"))
            yield frame, self._numbers(mask)

    def _numbers(self, mask: Path) -> np.ndarray:
        found = read_mask(mask)
        return (found > 127).astype(np.uint8) if self.is_binary else found


def read_mask(file: Path) -> np.ndarray:
    """Object numbers uint8 (H, W) as the PNG stores them. Raises ValueError for colours instead of numbers."""
    with Image.open(file) as image:
        require(
            image.mode in ("P", "L", "1"),
            f"The mask {file.name} of {file.parent.name} has no palette but colours (mode {image.mode}); save it as a "
            "palette PNG of object numbers.",
        )
        found = np.asarray(image)
    return found.astype(np.uint8) * (255 if found.dtype == bool else 1)


def davis_sequences(root: str, split: str | None, names: list[str]) -> tuple[list[FolderSequence], dict[str, str]]:
    """The sequences of a root of DAVIS, and for those that cannot be scored one sentence each.

    Args:
        root: holds JPEGImages and Annotations, or a folder `test` or DAVIS that does. split: a list in ImageSets;
            without that folder all sequences are read. names: of the only ones to read.
    Raises:
        ValueError: no such layout or list, or a name that is not there.
    """
    base = next((Path(root, part) for part in ("", "test", "DAVIS") if Path(root, part, "JPEGImages").is_dir()), None)
    require(base is not None, f"{root} has no folder JPEGImages; pass the root of DAVIS, which has it.")
    require((base / "Annotations").is_dir(), f"{base} has no folder Annotations, and so no masks.")
    size = next((name for name in SIZES if (base / "JPEGImages" / name).is_dir()), "")
    pictures, masks = base / "JPEGImages" / size, base / "Annotations" / size
    listed = _listed(base, split) or sorted(each.name for each in pictures.iterdir() if each.is_dir())
    unknown = [name for name in names if name not in listed]
    require(not unknown, f"{', '.join(unknown)} is not a sequence of {base}; it has {', '.join(listed[:5])}, ...")
    found, skipped = [], {}
    for name in names or listed:
        try:
            found.append(_open(name, pictures / name, masks / name))
        except (ValueError, OSError) as error:
            skipped[name] = str(error)
    return found, skipped


def _listed(base: Path, split: str | None) -> list[str]:
    """Names in the list of a split, in order; empty if the root has no lists. DAVIS-2016 lists every frame."""
    lists = base / "ImageSets"
    if not lists.is_dir():
        require(split is None, f"{base} has no ImageSets with a list '{split}'; leave --split out to read all of it.")
        return []
    file = next((file for name in LISTS if (file := lists / name / f"{split or 'val'}.txt").is_file()), None)
    require(file is not None, f"{lists} has no list {split or 'val'}.txt; choose another --split.")
    lines = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    require(bool(lines), f"{file} is empty; choose another --split.")
    return list(dict.fromkeys(Path(line).parent.name if "/" in line else line for line in lines))


def _open(name: str, pictures: Path, masks: Path) -> FolderSequence:
    """One sequence; reads the headers of all files. Raises ValueError with a sentence for what is wrong."""
    frames = _files(pictures, PICTURES)
    require(bool(frames), f"{name} has no frames in {pictures}.")
    given = _files(masks, (".png",))
    require(bool(given), f"{name} has no masks in {masks}, and so nothing to propagate or to score.")
    require(
        len(frames) >= FEWEST,
        f"{name} has {len(frames)} frame(s); the first and the last are not scored, so 3 are needed.",
    )
    _check_gaps(name, list(frames))
    lacking = [stem for stem in frames if stem not in given]
    if lacking:
        raise ValueError(f"{name} has no mask for {len(lacking)} of {len(frames)} frames, the first {lacking[0]!r}.")
    size = _size(next(iter(frames.values())))
    for stem, file in frames.items():
        for kind, each in (("frame", file), ("mask", given[stem])):
            require(
                _size(each) == size,
                f"The {kind} {stem} of {name} has {_shown(_size(each))} pixels and its first frame {_shown(size)}; "
                "masks and frames must be of one size.",
            )
    first = given[next(iter(frames))]
    numbers = np.unique(read_mask(first))
    with Image.open(first) as image:
        has_palette = image.mode == "P"
    is_binary = not has_palette and set(numbers.tolist()) <= {0, 255} and 255 in numbers
    objects = 1 if is_binary else max((int(number) for number in numbers if number != VOID), default=0)
    require(objects > 0, f"The first mask of {name} has no object.")
    used = [int(number) for number in numbers if number not in (0, VOID)]
    values = ", ".join(map(str, used[:5]))
    require(
        has_palette or is_binary or objects <= 2 * len(used),
        f"The first mask of {name} has the values {values}, which are grey levels and not object numbers from 1: its "
        "palette is missing; save it as a palette PNG.",
    )
    digest = hashlib.sha256()
    for file in (*frames.values(), *(given[stem] for stem in frames)):
        facts = file.stat()
        digest.update(f"{file.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return FolderSequence(
        name,
        size,
        len(frames),
        objects,
        digest.hexdigest()[:16],
        list(frames.values()),
        [given[stem] for stem in frames],
        is_binary,
    )


def _files(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """stem -> file, in order."""
    if not folder.is_dir():
        return {}
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in endings}


def _check_gaps(name: str, stems: list[str]) -> None:
    """Raises ValueError if the numbers of the frames are not consecutive; names that are no numbers are not checked."""
    if not all(stem.isdigit() for stem in stems):
        return
    numbers = [int(stem) for stem in stems]
    for before, after in itertools.pairwise(numbers):
        require(
            after == before + 1,
            f"{name} has no frame between {before} and {after}; frames must be consecutive, since masks travel from "
            "one to the next.",
        )


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.height, image.width


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
