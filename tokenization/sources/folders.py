"""The files of a folder, its splits and its classes. Names are data: no word inside a name decides what is read.

A split is a direct subfolder named exactly train, validation (val, valid, dev) or test, or the one that is asked for.
Every other subfolder is a class or a place, but if a single one holds everything and several splits, they count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

VALIDATION = ("validation", "val", "valid", "dev")
SPLITS = ("train", *VALIDATION, "test")


@dataclass
class Tree:
    """Everything below a folder, as sorted paths inside it, with "/".

    Fields:
        root: absolute path of the folder, links not resolved.
        files: regular files, those in linked folders included, under the names of the links.
        hidden: files and folders whose names begin with a dot, not entered. broken: links to nothing.
        loops: links to a folder that they are in, not followed.
        odd: names that are not UTF-8, written with escapes as "files" has them -> the names on the disk.
    """

    root: str
    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> str:
        """The path of a file by its name in the folder."""
        return os.path.join(self.root, self.odd.get(name, name))

    def where(self, name: str) -> str:
        """What `storage.copies.local_copy` takes for a file: its path, or its URL."""
        return self.path(name)

    def medium(self, name: str) -> dict:
        """A video or an image in a row, as `dataset_rows.content_of` reads it."""
        return {"path": self.path(name), "bytes": None}


def walk(folder: str | os.PathLike) -> Tree:
    """Lists a folder. Linked folders are followed unless they contain the link.

    Raises:
        OSError: a folder cannot be read.
    """
    tree = Tree(os.path.abspath(folder))
    waiting = [("", tree.root, (os.path.realpath(folder),))]  # (name, path, real paths of it and the folders above)
    while waiting:
        inside, path, above = waiting.pop()
        has_odd = inside.rstrip("/") in tree.odd
        with os.scandir(path) as entries:
            for entry in entries:
                name = inside + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                on_disk = os.path.relpath(entry.path, tree.root) if has_odd or not entry.name.isascii() else name
                if on_disk != name:
                    tree.odd[name] = on_disk
                is_link = entry.is_symlink()  # whose target is looked up by os.path, which knows links to themselves
                if entry.name.startswith("."):
                    tree.hidden.append(name)
                elif os.path.isdir(entry.path) if is_link else entry.is_dir():
                    real = os.path.realpath(entry.path) if is_link else os.path.join(above[-1], entry.name)
                    if real in above:
                        tree.loops.append(name)
                    else:
                        waiting.append((f"{name}/", entry.path, (*above, real)))
                elif os.path.isfile(entry.path) if is_link else entry.is_file():
                    tree.files.append(name)
                elif is_link:
                    tree.broken.append(name)
    for names in (tree.files, tree.hidden, tree.broken, tree.loops):
        names.sort()
    return tree


def split_folders(names: Iterable[str], asked: str | None, has_classes: bool = True) -> dict[str, list[str]]:
    """Split -> names of the files in its folder; empty if no direct subfolder is a split.

    A single folder with the name of a split that lies among several others, with files directly in it as in a class,
    is taken for a class ("train" beside "bus" and "car").

    Args:
        names: of the files that count, sorted. asked: the split that is wanted, which may have any name.
        has_classes: whether folders may be classes.
    """
    tops: dict[str, list[str]] = {}
    for name in names:
        top, slash, _ = name.partition("/")
        if slash:
            tops.setdefault(top, []).append(name)
    found = [split for split in SPLITS if split in tops]
    if has_classes and len(found) == 1 and len(tops) > 2 and any(name.count("/") == 1 for name in tops[found[0]]):
        found = []
    if asked in tops and asked not in SPLITS:
        found.append(asked)
    return {split: tops[split] for split in found}


def wrapper_of(names: Iterable[str], asked: str | None, has_classes: bool = True) -> str:
    """The folder, with a slash at its end, that holds all files and whose subfolders are splits; "" if there is none.

    Its splits are the one that is asked for by a name of its own, or at least two: a single folder called train may as
    well be a class.

    Args:
        as in `split_folders`, which found no splits.
    """
    inside, base = list(names), ""
    while len({name.partition("/")[0] for name in inside}) == 1 and "/" in inside[0]:
        top = inside[0].partition("/")[0] + "/"
        base, inside = base + top, [name[len(top) :] for name in inside]
        found = split_folders(inside, asked, has_classes)
        if len(found) > 1 or (asked in found and asked not in SPLITS):
            return base
    return ""


def numbered_splits(names: Iterable[str], asked: str | None) -> dict[str, list[str]]:
    """Split -> files of rows named after it: train.parquet, train-00000-of-00004.parquet, imagenet-train-0003.tar.

    The name of the split is all that stands before the number, or its last word.
    """
    splits: dict[str, list[str]] = {}
    for name in names:
        stem = name.rpartition("/")[2].rpartition(".")[0]
        numbered = re.fullmatch(r"(?:(.*)[-_.])?([^-_.]+?)[-_.]\d+(?:-of-\d+)?(?:-[0-9a-f]{16})?", stem)
        whole = re.fullmatch(r"(.+?)[-_.]\d+(?:-of-\d+)?(?:-[0-9a-f]{16})?", stem)
        candidates = [stem, whole and whole[1], numbered and numbered[2]]
        split = next((each for each in candidates if each in SPLITS or (asked is not None and each == asked)), None)
        if split is not None:
            splits.setdefault(split, []).append(name)
    return splits


def choose_split(splits: Iterable[str], asked: str | None) -> str | None:
    """The split that `asked` means: itself, the other name of a validation split, or the only one if it is None.

    None if there is no such split. Raises ValueError if several could be meant.
    """
    splits = list(splits)
    if asked in splits:
        return asked
    meant = [split for split in splits if asked is None or (asked == "validation" and split in VALIDATION)]
    if len(meant) > 1:
        raise ValueError(f"Several splits could be meant ({', '.join(meant)}); name one of them.")
    return meant[0] if meant else None


def classes_of(names: Iterable[str], base: str = "") -> set[str]:
    """The class folders of the files below `base`: their parents, if all files are equally deep; else none."""
    inside = [name[len(base) :] for name in names]
    depths = {name.count("/") for name in inside}
    return {name.split("/")[-2] for name in inside} if len(depths) == 1 and 0 not in depths else set()
