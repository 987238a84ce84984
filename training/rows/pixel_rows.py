"""Training rows from pixels: decoded ahead in a thread, with new crops in every epoch, tokenized when needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from tokenization.patches import Patches
from tokenization.sampling import Sampling
from tokenization.sequences import image_rows, video_rows
from training.args import Source
from training.rows.frames import clips, prefetch

# Clips decoded ahead of the one in use.
AHEAD = 8


class Ended(Exception):
    """A source, or the whole mixture, has no rows left."""


class PixelRows:
    """The rows of this process's share of a dataset of videos or images, in the order of the dataset; see `ShardRows`.

    Args:
        to_row: (frames uint8 (T, R, R, 3), whether they are images) -> row; see `token_row` and `patch_row`.
        which: "train" or "validation" part of the items, by a hash of their names; None takes all.
        repeat: start again after the last item; otherwise raise `Ended`.
    Raises:
        ValueError, FileNotFoundError: there is no such dataset, or nothing in it to read.
    """

    is_indexed = False
    rows_per_epoch = None  # not known beforehand

    def __init__(
        self,
        source: Source,
        resolution: int,
        num_frames: int,
        to_row: Callable,
        seed: int,
        *,
        which: str | None = None,
        repeat: bool = True,
        split: str | None = None,
    ):
        from tokenization.sources.open import open_source

        self.source, self.to_row, self.num_frames = source, to_row, num_frames
        sampling = Sampling(1, source.stride, source.fps, resolution, seed=seed, resize=source.resize)
        columns = {"image_column": source.image_column, "kind": source.kind, "config_name": source.config_name}
        self.split, crops = split or source.split, source.crops
        if source.is_toyworld:  # its clips are all different anyway
            self.is_image, crops = source.kind == "image", 1
        else:
            self.is_image = open_source(source.data, self.split, sampling, limit=1, **columns).kind == "image"
        self._sampling = replace(sampling, num_frames=1 if self.is_image else num_frames, crops=crops)
        self._read = columns | {"hold_out": which == "train", "only_held_out": which == "validation", "repeat": repeat}
        self._position, self._rows = [0, 0, 0], None
        self.rank, self.world = 0, 1

    @property
    def fingerprint(self) -> str:
        """The name of the data, which changes with it."""
        return f"{self.source.data}:{self.split}"

    def share(self, rank: int, world: int) -> None:
        """Take only every world-th item from now on."""
        self.rank, self.world = rank, world

    def row(self, _k: int):
        """The next row; its number is ignored, since pixels can only be read in order."""
        if self._rows is None:
            self._rows = prefetch(self._packs(self._position), AHEAD)
        try:
            frames, self._position = next(self._rows)
        except StopIteration:
            raise Ended(self.source.name) from None
        return self.to_row(frames, self.is_image)

    def _packs(self, position: list[int]) -> Iterator[tuple[np.ndarray, list[int]]]:
        """(frames of a row, position of the next one)."""
        stream = clips(
            self.source.data, self.split, position, self._sampling, rank=self.rank, world=self.world, **self._read
        )
        if not self.is_image:
            for clip, after in stream:
                yield clip.frames, after
            return
        while pack := list(itertools.islice(stream, self.num_frames)):
            if len(pack) == self.num_frames:
                yield np.concatenate([clip.frames for clip, _ in pack]), pack[-1][1]

    def state_dict(self) -> list[int]:
        """The position of the next row: [epoch, items before, clips of the item]."""
        return self._position

    def load_state_dict(self, state: list[int]) -> None:
        self._position, self._rows = state, None


def token_row(processor) -> Callable:
    """A function frames -> ids (L,), which uses the visual tokenizer on its own device."""

    def to_row(frames: np.ndarray, is_image: bool) -> torch.LongTensor:
        codes = processor.encode_frames(frames)[None]  # (1, T, h, w)
        return (image_rows if is_image else video_rows)(codes)[0]

    return to_row


def patch_row(patch_size: int, processor=None) -> Callable:
    """A function frames -> {"patches" (N, 3 * P * P), and with a processor "codes" (N,)}, for paper Table 3."""
    patches = Patches(patch_size)

    def to_row(frames: np.ndarray, is_image: bool) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        row = {"patches": patches.encode(pixels).values.flatten(0, 2)}
        if processor is not None:
            row["codes"] = processor.encode_frames(frames).flatten()
        return row

    return to_row
