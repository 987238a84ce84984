"""Labelled clips in memory, as ids or as pixels, and the numbers of their classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from tqdm.auto import tqdm

from tokenization.video import Clip

from .args import require
from .splits import Split

# Clips tokenized at a time.
BATCH = 16


class Clips:
    """Clips of a split in memory: `codes` (N, T, h, w), or `frames` uint8 (N, T, S, S, 3), or items to decode anew.

    labels: (N,) numbers of `classes` (None: not named). sources: file or row of each. skipped: [{"source", "why"}].

    Args:
        processor: tokenizes them at once; None keeps what there is of pixels.
        is_kept: whether pixels are decoded once and kept, or when they are asked for.
    Raises:
        ValueError: nothing to read, or a label that is missing, hidden, or out of range.
    """

    def __init__(self, split: Split, column: str, processor=None, is_kept: bool = True):
        self.name, self.kind, self.codes, self.frames, self.items = split.name, split.source.kind, None, None, None
        self.classes = split.source.label_names[column] or None
        self.sources, self.skipped, labels = [], [], []
        if is_kept or processor is not None:
            frames, codes = [], []
            for name, clip in self._decoded(split):
                self._check(clip.labels.get(column), name, column)
                labels.append(clip.labels[column])
                self.sources.append(name)
                frames.append(clip.frames)
                if processor is not None and len(frames) == BATCH:
                    codes.append(_encode(processor, frames))
                    frames = []
            if processor is not None:
                codes += [_encode(processor, frames)] if frames else []
                self.codes = np.concatenate(codes) if codes else None
            elif frames:
                self.frames = np.stack(frames)
        else:
            require(
                split.source.lists_paths and split.source.expected is None,
                f"{self.name} is no folder of files, which alone can be decoded when needed: take --decode once.",
            )
            self.items = list(split)
            for item in self.items:
                self._check(item.labels.get(column), item.name, column)
                labels.append(item.labels[column])
                self.sources.append(item.name)
        why = f" ({len(self.skipped)} skipped; the first: {self.skipped[0]['why']})" if self.skipped else ""
        require(bool(labels), f"No clip of {self.name} could be read{why}; check --dataset, --num_frames and --stride.")
        self.labels = np.array(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def _decoded(self, split: Split) -> Iterator[tuple[str, Clip]]:
        count = split.source.expected if split.items is None else len(split.items)
        for item in tqdm(split, total=count, desc=f"reading {self.name}", unit="item"):
            try:
                for clip in item.clips():
                    yield item.name, clip
            except (ValueError, OSError) as error:
                self.skipped.append({"source": item.name, "why": str(error)})

    def _check(self, label: int | None, name: str, column: str) -> None:
        require(
            label is not None and label >= 0,
            f"{name} of {self.name} has no '{column}' (missing or hidden); name other splits, or leave it out.",
        )
        require(
            self.classes is None or label < len(self.classes),
            f"{name} of {self.name} has '{column}' {label}, but there are {len(self.classes or [])} classes.",
        )

    def pixels(self, index: int) -> tuple[np.ndarray, int]:
        """(uint8 (T, S, S, 3), label) of a clip whose pixels are kept or decoded anew; of a bad file the next one's."""
        if self.items is None:
            return self.frames[index], int(self.labels[index])
        for number in [*range(index, len(self)), *range(index)]:
            item = self.items[number]
            try:
                return next(iter(item.clips())).frames, int(self.labels[number])
            except (ValueError, OSError) as error:
                warnings.warn(f"{item.name}: {error} The next file stands in.", stacklevel=2)
        raise ValueError(f"Nothing of {self.name} can be decoded.")


def _encode(processor, frames: list[np.ndarray]) -> np.ndarray:
    """Clips (T, R, R, 3) -> codes (B, T, h, w) uint16."""
    codes = processor.encode_frames(np.concatenate(frames))
    return codes.numpy().astype(np.uint16).reshape(len(frames), -1, *codes.shape[1:])


def same_classes(splits: list[Clips], column: str) -> list[str]:
    """The names of the classes, whose numbers all splits then have; those of a folder without one class differ.

    Numbers without names are their own names, whatever they are: 1 to 3, or 10, 20 and 40.

    Raises:
        ValueError: one class only, training clips of less than half of the classes, or numbers of rows.
    """
    train = splits[0]
    if train.classes:
        names = list(dict.fromkeys(name for split in splits for name in split.classes or []))
        numbers = {name: number for number, name in enumerate(names)}
        for split in splits:
            split.labels = np.array([numbers[name] for name in split.classes])[split.labels]
    else:
        values = np.unique(np.concatenate([split.labels for split in splits]))
        require(
            len(values) < sum(map(len, splits)),
            f"No two clips have the same '{column}', so it numbers them; name another --label_column.",
        )
        for split in splits:
            split.labels = np.searchsorted(values, split.labels)
        names = [str(value) for value in values]
    seen = len(np.unique(train.labels))
    require(seen > 1, f"All training clips have the same '{column}'; a classifier needs two classes.")
    require(
        seen >= len(names) / 2,
        f"The training clips hold {seen} of {len(names)} classes of '{column}': rows may be sorted by class; raise "
        "--max_train.",
    )
    return names
