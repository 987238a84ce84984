"""Train, validation and test of a labelled data set: three splits that share no file, carved where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenization.sources import ClipSource, open_source

from .args import require
from .finetune_args import LabelledArgs

VALIDATION_NAMES = ("validation", "val", "valid")
CARVED = 0.2  # of the files of a split, for one that the data set lacks
TOYWORLD_ITEMS = {"train": 2000, "validation": 500, "test": 500}  # it has no end


@dataclass
class Split:
    """What one of the three splits is read from. name: in words. items: names of the source's files or rows that belong
    to it; None: all."""

    name: str
    source: ClipSource
    items: list[str] | None

    def __post_init__(self):
        self._wanted = None if self.items is None else set(self.items)

    def __iter__(self) -> Iterator:
        """Its items, undecoded."""
        for shard in range(self.source.num_shards):
            for item in self.source.list_items(shard):
                if self._wanted is None or item.name in self._wanted:
                    yield item


def other_splits(names: tuple[str, ...], train: str, validation: str | None, test: str | None) -> tuple[str, ...]:
    """Those of the names that no part of a data set was asked of by name.

    Raises:
        ValueError: two parts are asked of one split, so that they would share every item.
    """
    flags: dict[str, str] = {}
    for flag, name in (("--train_split", train), ("--validation_split", validation), ("--test_split", test)):
        require(
            name is None or name not in flags,
            f"{flags.get(name)} and {flag} both name the split '{name}' and would share every item; name another, or "
            "leave one of them out.",
        )
        flags |= {name: flag} if name else {}
    return tuple(name for name in names if name not in flags)


class LabelledMedia:
    """Opens the splits of a data set, at any resolution.

    Args:
        num_frames: of a clip; an image is one frame whatever this says.
        seed: of what is carved.
    Raises:
        ValueError, FileNotFoundError: no such data set or split.
    """

    def __init__(self, args: LabelledArgs, num_frames: int, seed: int):
        self.args, self.num_frames, self.seed = args, num_frames, seed

    def open(self, split: str, resolution: int, part: str) -> ClipSource:
        """A split of the data set; part: "train", "validation" or "test", whichever it is used as."""
        read = {"num_frames": self.num_frames, "resolution": resolution, "stride": self.args.stride}
        read |= {"fps": self.args.fps, "image_column": self.args.image_column, "kind": self.args.kind}
        is_toyworld = self.args.dataset.split(":")[0] == "toyworld"
        limit = (self._most(part) or TOYWORLD_ITEMS[part]) if is_toyworld else 10**12
        return open_source(self.args.dataset, split, limit=limit, **read)

    def _most(self, part: str) -> int | None:
        return getattr(self.args, f"max_{part}")

    def splits(self, resolution: int) -> list[Split]:
        """[train, validation, test]. Where one is missing, a fifth of the files of train stands in for it; where only
        test is, the validation split is the test and validation is taken from train."""
        args = self.args
        asked = args.validation_split, args.test_split
        validation_names, test_names = (
            other_splits(names, args.train_split, *asked) for names in (VALIDATION_NAMES, ("test",))
        )

        def find(names: tuple[str, ...], part: str) -> tuple[str, ClipSource] | None:
            if Path(args.dataset).is_file():  # one file is one split, whatever it is called
                return None
            for name in names:
                try:
                    return name, self.open(name, resolution, part)
                except ValueError:
                    continue
            return None

        train = args.train_split, self.open(args.train_split, resolution, "train")
        validation = find((asked[0],) if asked[0] else validation_names, "validation")
        test = find((asked[1],) if asked[1] else test_names, "test")
        for found, name in zip((validation, test), asked, strict=True):
            require(found is not None or name is None, f"{args.dataset} has no split '{name}'.")
        if test is None and validation is not None and asked[0] is None:
            test, validation = validation, None

        names = self._limited(train[1], self._most("train"))
        found = []
        for split, part in ((test, "test"), (validation, "validation")):
            if split is None:
                names, taken = self._carve(names or [item.name for item in Split("", train[1], None)], self._most(part))
                found.append(Split(f"{part}: from {train[0]} (seed {self.seed})", train[1], taken))
            else:
                found.append(Split(f"{part}: {split[0]}", split[1], self._limited(split[1], self._most(part))))
        return [Split(f"train: {train[0]}", train[1], names), found[1], found[0]]

    def _limited(self, source, most: int | None) -> list[str] | None:
        """Names of `most` items: any of a folder, the first ones where listing reads the media; None for all."""
        if most is None or source.expected is not None:
            return None
        names = []
        for item in Split("", source, None):
            if len(names) == most and not source.lists_paths:
                break
            names.append(item.name)
        if len(names) > most:
            names = [names[i] for i in np.sort(np.random.default_rng(self.seed).permutation(len(names))[:most])]
        return names

    def _carve(self, names: list[str], most: int | None) -> tuple[list[str], list[str]]:
        require(
            len(names) > 2,
            f"'{self.args.dataset}' has {len(names)} files or rows: too few to take validation and test from.",
        )
        count = max(1, round(CARVED * len(names)))
        count = count if most is None else min(count, most)
        chosen = set(np.random.default_rng(self.seed).permutation(len(names))[:count].tolist())
        rest = [name for k, name in enumerate(names) if k not in chosen]
        return rest, [names[k] for k in sorted(chosen)]


def label_column(source, asked: str | None, dataset: str) -> str:
    """The column of the labels: the one asked for, or the only one.

    Raises:
        ValueError: there is none, another, or several.
    """
    has = list(source.label_names)
    why = source.no_labels.get(asked or "label") if asked or not has else None
    require(why is None, f"The column {why} ({dataset}).")
    require(bool(has), f"{dataset} has no label column; put the files into class folders, or add a column of classes.")
    require(asked is not None or len(has) == 1, f"{dataset} has several label columns; name one: {', '.join(has)}.")
    require(
        asked is None or asked in has,
        f"{dataset} has no label column '{asked}'; --label_column can be {', '.join(has)}.",
    )
    return asked or has[0]
