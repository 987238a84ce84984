"""The train, validation and test splits of a labelled dataset, which share no file; missing ones are carved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tokenization.sampling import Sampling
from tokenization.sources.labelled import carve, open_splits
from tokenization.sources.open import ClipSource, open_source
from training.finetune_args import LabelledArgs

TOYWORLD_ITEMS = {"train": 2000, "validation": 500, "test": 500}  # it has no end


@dataclass
class Split:
    """The origin of one of the three splits.

    name: a description in words. items: names of the source's files or rows
    that belong to it; None: all. is_carved: they are taken from another split.
    """

    name: str
    source: ClipSource
    items: list[str] | None
    is_carved: bool = False

    def __post_init__(self):
        self._wanted = None if self.items is None else set(self.items)

    def __iter__(self) -> Iterator:
        """The items of the split, not decoded."""
        for shard in range(self.source.num_shards):
            for item in self.source.list_items(shard):
                if self._wanted is None or item.name in self._wanted:
                    yield item


class LabelledMedia:
    """Opens the splits of a dataset, at any resolution.

    Args:
        num_frames: frames per clip; ignored for images.
    Raises:
        ValueError, FileNotFoundError: there is no such dataset or split.
    """

    def __init__(self, args: LabelledArgs, num_frames: int):
        self.args, self.num_frames = args, num_frames

    def open(self, split: str, resolution: int, part: str) -> ClipSource:
        """A split of the dataset. part: its role, "train", "validation" or "test"."""
        args = self.args
        sampling = Sampling(self.num_frames, args.stride, args.fps, resolution, resize=args.resize)
        columns = {"image_column": args.image_column, "kind": args.kind, "config_name": args.config_name}
        is_toyworld = self.args.dataset.split(":")[0] == "toyworld"
        limit = (self._most(part) or TOYWORLD_ITEMS[part]) if is_toyworld else 10**12
        return open_source(self.args.dataset, split, sampling, limit=limit, **columns)

    def _most(self, part: str) -> int | None:
        return getattr(self.args, f"max_{part}")

    def splits(self, resolution: int) -> list[Split]:
        """[train, validation, test].

        A missing split is carved from train, a fifth of its files. If only test is missing, the validation split
        becomes the test and validation is carved from train.
        """
        args = self.args
        asked = args.train_split, args.validation_split, args.test_split
        train, validation, test = open_splits(
            lambda name, part: self.open(name, resolution, part), args.dataset, *asked
        )
        names = self._limited(train[1], self._most("train"))
        found = []
        for split, part in ((test, "test"), (validation, "validation")):
            if split is None:
                names = names or [item.name for item in Split("", train[1], None)]
                inside = carve(names, train[0], args.split_seed, args.group_by, most=self._most(part))
                taken = [name for name, is_taken in zip(names, inside, strict=True) if is_taken]
                names = [name for name, is_taken in zip(names, inside, strict=True) if not is_taken]
                found.append(
                    Split(f"{part}: from {train[0]} (seed {args.split_seed})", train[1], taken, is_carved=True)
                )
            else:
                found.append(Split(f"{part}: {split[0]}", split[1], self._limited(split[1], self._most(part))))
        return [Split(f"train: {train[0]}", train[1], names), found[1], found[0]]

    def _limited(self, source, most: int | None) -> list[str] | None:
        """Names of `most` items: random ones of a folder, the first ones if listing reads the media. None for all."""
        if most is None or source.expected is not None:
            return None
        names = []
        for item in Split("", source, None):
            if len(names) == most and not source.lists_paths:
                break
            names.append(item.name)
        if len(names) > most:
            names = [
                names[i] for i in np.sort(np.random.default_rng(self.args.split_seed).permutation(len(names))[:most])
            ]
        return names
