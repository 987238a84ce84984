"""Labelled clips in memory, as codes or as pixels, with their class numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from tokenization.sources.labelled import check_labels, number_classes
from tokenization.terminal.progress import tqdm
from tokenization.video import Clip
from training.flags import require
from training.rows.labelled_media import Split

# Clips tokenized at a time.
BATCH = 16


class Clips:
    """The clips of a split: `codes` (N, T, h, w), `frames` uint8 (N, T, S, S, 3), or items to decode when needed.

    labels: (N,) class numbers, or text until `same_classes` numbers it (`is_text`). classes: their names, or None.
    sources: file or row of each clip. skipped: [{"source", "why"}].

    Args:
        processor: tokenizes the clips at once; None keeps pixels.
        is_kept: whether pixels are decoded once and kept, or decoded whenever they are needed.
    Raises:
        ValueError: there is nothing to read, or a label is missing, hidden or out of range.
    """

    def __init__(self, split: Split, column: str, processor=None, is_kept: bool = True):
        self.name, self.kind, self.codes, self.frames, self.items = split.name, split.source.kind, None, None, None
        self.classes = split.source.label_names.get(column) or None
        self.sources, self.skipped, labels = [], [], []
        self.is_text, self.is_carved = column in split.source.text_labels, split.is_carved
        missing = "" if self.is_text else -1
        if is_kept or processor is not None:
            frames, codes = [], []
            for name, clip in self._decoded(split):
                labels.append(clip.labels.get(column, missing))
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
                f"{self.name} is not a folder of files; --decode always needs one, so use --decode once.",
            )
            self.items = list(split)
            for item in self.items:
                labels.append(item.labels.get(column, missing))
                self.sources.append(item.name)
        why = f" ({len(self.skipped)} skipped; the first: {self.skipped[0]['why']})" if self.skipped else ""
        require(bool(labels), f"No clip of {self.name} could be read{why}; check --dataset, --num_frames and --stride.")
        self.labels = np.array(labels)
        check_labels(self.labels, self.classes, column, self.name, self.sources)

    def __len__(self) -> int:
        return len(self.labels)

    def _decoded(self, split: Split) -> Iterator[tuple[str, Clip]]:
        count = split.source.count_items() if split.items is None else len(split.items)
        for item in tqdm(split, total=count, desc=f"reading {self.name}", unit="item"):
            try:
                for clip in item.clips():
                    yield item.name, clip
            except (ValueError, OSError) as error:
                self.skipped.append({"source": item.name, "why": str(error)})

    def pixels(self, index: int) -> tuple[np.ndarray, int]:
        """(frames uint8 (T, S, S, 3), label) of a clip; the next readable one takes the place of a damaged file."""
        if self.items is None:
            return self.frames[index], int(self.labels[index])
        for number in [*range(index, len(self)), *range(index)]:
            item = self.items[number]
            try:
                return next(iter(item.clips())).frames, int(self.labels[number])
            except (ValueError, OSError) as error:
                warnings.warn(f"{item.name}: {error} The next file takes its place.", stacklevel=2)
        raise ValueError(f"No file of {self.name} can be decoded.")


def _encode(processor, frames: list[np.ndarray]) -> np.ndarray:
    """Clips (T, R, R, 3) -> codes (B, T, h, w) uint16."""
    codes = processor.encode_frames(np.concatenate(frames))
    return codes.numpy().astype(np.uint16).reshape(len(frames), -1, *codes.shape[1:])


def same_classes(splits: list[Clips], column: str) -> list[str]:
    """Give all splits the same class numbers, in place; returns the names of the classes."""
    numbered, names = number_classes(column, [split.labels for split in splits], [split.classes for split in splits])
    for split, labels in zip(splits, numbered, strict=True):
        split.labels = labels
    return names
