"""CATER (Girdhar and Ramanan 2020): in which of 6 x 6 cells is the small golden object in the last frame?

`--dataset cater:FOLDER` names one of the published folders, unpacked: `all_actions` (static camera) or
`all_actions_cameramotion`, with

    FOLDER/videos/CATER_new_000000.avi, ...
    FOLDER/lists/localize/train.txt, val.txt, train_subsetT.txt, train_subsetV.txt

A line of a list is a path and a class, separated by a space (its authors' README says a comma, their code and their
lists have a space). The class of a place (x, y) on the ground, both from -3 to 3, is floor(x) + 3 + 6 (floor(y) + 3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tokenization.sources.dataset_rows import Rows

PREFIX = "cater:"
SIDE = 6
HALF = SIDE // 2
# Our splits: the lists in which they are looked for. The official test set is val.txt, and the official development
# set is a fifth of train.txt; without that list a part of train.txt is carved off.
SPLITS = {"train": ("train_subsetT", "train"), "validation": ("train_subsetV",), "test": ("val",)}
FOLDERS = ("videos", "images")  # the published name, and that of the generator


def folder_of(dataset: str) -> str | None:
    """The folder of "cater:FOLDER"; None for any other dataset.

    Raises:
        ValueError: no folder is named.
    """
    if not dataset.startswith(PREFIX):
        return None
    if dataset == PREFIX:
        raise ValueError("cater: names no folder; write cater:FOLDER, with the folder that holds videos/ and lists/.")
    return dataset.removeprefix(PREFIX)


def cell_names() -> list[str]:
    """Names "x,y" of the classes, by the lower corners of their cells on the ground: "-3,-3" is 0, "2,2" is 35."""
    return [f"{number % SIDE - HALF},{number // SIDE - HALF}" for number in range(SIDE**2)]


def open_cater(folder: str, split: str | None = "train") -> Rows:
    """The videos of a split with their cells in the column `label`, in the order of the list.

    Args:
        folder: as above. split: train, validation (where the folder has the list of it) or test; None is train.
    Raises:
        FileNotFoundError: no such folder, lists or videos. ValueError: no such split, or a line that is not a path, a
            space and a class.
    """
    from datasets import ClassLabel, Video

    lists = _lists(folder)
    split = split or "train"
    found = {name: next((lists[each] for each in files if each in lists), None) for name, files in SPLITS.items()}
    if found["validation"] is None and "train" in lists:  # a T list without its V list would lose a fifth
        found["train"] = lists["train"]
    has = [name for name, file in found.items() if file is not None]
    if split not in has:
        raise ValueError(f"{PREFIX}{folder} has no split {split!r}; it has {', '.join(has)}.")
    listed = _read(found[split])
    there = _videos(folder)
    places = [there.get(Path(path).name, Path(folder) / FOLDERS[0] / Path(path).name) for path, _ in listed]
    if not any(place.name in there for place in places):
        raise FileNotFoundError(
            f"{found[split]} lists {listed[0][0]}, and {folder} has none of its videos; unpack them into "
            f"{Path(folder) / FOLDERS[0]}."
        )

    def read(_shard, _wanted) -> Iterator[dict]:
        for (_, label), place in zip(listed, places, strict=True):
            yield {"video": {"path": str(place), "bytes": None}, "label": label, "__key__": place.name}

    features = {"video": Video(), "label": ClassLabel(names=cell_names())}
    told = f"read {len(listed):,} videos of split {split}, listed in {found[split]}"
    return Rows(features, read, split, lists_paths=True, count=len(listed), found=[told])


def _lists(folder: str) -> dict[str, Path]:
    """The lists of the localisation task, by name without suffix."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; check the path after {PREFIX}.")
    for name in ("lists", "list"):  # the authors' README has the second
        place = Path(folder) / name / "localize"
        if found := {file.stem: file for file in sorted(place.glob("*.txt"))}:
            return found
    raise FileNotFoundError(
        f"{folder} has no lists/localize/train.txt; name the folder of CATER that holds videos/ and lists/."
    )


def _read(file: Path) -> list[tuple[str, int]]:
    """(path, class) of every line."""
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= SIDE**2:
            raise ValueError(
                f"Line {number} of {file} is {line!r}; it must be a path, a space and a class from 0 to {SIDE**2 - 1}."
            )
        rows.append((path, int(label)))
    if not rows:
        raise ValueError(f"{file} lists no video; unpack the lists again.")
    return rows


def _videos(folder: str) -> dict[str, Path]:
    """Name -> path of every file of FOLDERS, found by listing them: a look-up for each would cost every process all.

    The lists may hold paths on their authors' machines, of which the last part counts.
    """
    found: dict[str, Path] = {}
    for each in reversed(FOLDERS):  # the first one wins
        place = Path(folder) / each
        found |= {name: place / name for name in os.listdir(place)} if place.is_dir() else {}
    return found
