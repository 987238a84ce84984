"""Rows of ids from token shards, accessed by number, in a new order in every epoch.

Row k of a source is the same row for any number of processes and after any resume. Rows are shuffled when they are
written. Every epoch shuffles the order of the shards and, from the second epoch on, the rows within each shard. A shard
(tens of megabytes) is read as a whole, much faster than any model trains, so no worker processes are needed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tokenization.sequences import CODE_OFFSET, image_rows, video_rows
from tokenization.tokenize_dataset import read_manifest

# Without separate validation data, one item in HELD_OUT of a source is used for validation: whole items, so that all
# windows of a video are on the same side.
HELD_OUT = 20
# Enough for a mean within a hundredth of a nat, and a minute on a CPU.
VALIDATION_ROWS = 256


def is_held_out(source: str) -> bool:
    """Whether an item is used for validation, in a dataset without separate validation data."""
    return zlib.crc32(source.encode()) % HELD_OUT == 0


def read_codes(shards: str | Path, which: str | None = None, limit: int | None = None) -> np.ndarray:
    """The codes in a folder of shards as uint16 (N, T, h, w), in the order in which they were written.

    Args:
        which: "train" or "validation" part, by a hash of the items' names; None takes every row.
        limit: number of rows at most.
    """
    shards = Path(shards)
    manifest = read_manifest(shards)
    frames = manifest["num_frames"] if manifest["kind"] == "video" else 1
    found, count = [np.empty((0, frames * int(np.prod(manifest["grid"]))), np.uint16)], 0
    for shard in manifest["shards"]:
        codes = read_column(shards / shard["file"], "codes")
        if which is not None:
            held_out = np.array([is_held_out(source) for source in read_column(shards / shard["file"], "source")])
            codes = codes[held_out == (which == "validation")]
        found.append(codes)
        count += len(codes)
        if limit is not None and count >= limit:
            break
    return np.concatenate(found)[:limit].reshape(-1, frames, *manifest["grid"])


def read_column(file: Path, column: str) -> np.ndarray:
    """A column of a shard: codes as uint16 (N, codes of a row), others (N,).

    Raises:
        FileNotFoundError: no such shard.
    """
    import pyarrow.parquet as pq  # what datasets reads parquet with; its load_dataset asks the Hub for every file

    if not file.is_file():
        raise FileNotFoundError(f"The shard {file} named by the manifest is missing; run toto tokenize again.")
    values = pq.read_table(file, columns=[column])[column].combine_chunks()
    if column != "codes":
        return values.to_numpy(zero_copy_only=False)
    return values.flatten().to_numpy().reshape(len(values), -1)


def check_fit(manifest: dict, config) -> None:
    """Check that the tokens and the geometry of shards fit the model.

    Raises:
        ValueError: they do not; the message has the model settings that would fit.
    """
    from modeling_toto import TotoConfig

    h, w = manifest["grid"]
    frames = manifest["num_frames"] if manifest["kind"] == "video" else config.num_frames
    wanted = {
        "vocab_size": CODE_OFFSET + manifest["num_codes"],
        "tokens_per_frame": h * w,
        "num_frames": frames,
    }
    unlike = {k: v for k, v in wanted.items() if getattr(config, k) != v}
    if unlike:
        differences = ", ".join(f"{k} {getattr(config, k)} (shards: {v})" for k, v in unlike.items())
        length = TotoConfig(tokens_per_frame=h * w).row_length(frames)
        fit = {**wanted, "max_position_embeddings": length}
        raise ValueError(
            f"These shards do not fit the model: {differences}. Tokenize with the model's tokenizer, or set "
            f"--config '{str(fit).replace(chr(39), chr(34))}'."
        )
    if config.max_position_embeddings < config.row_length():
        raise ValueError(
            f"A row of these shards has {config.row_length()} ids, but the model takes only "
            f"{config.max_position_embeddings}; raise max_position_embeddings in --config."
        )


class ShardRows:
    """The rows of ids in a folder of shards: `row(k)` is row k mod `rows_per_epoch` of epoch k // `rows_per_epoch`.

    A row is a video, or a pack of `config.num_frames` images; images that do not fill a pack are left out of an epoch.

    Args:
        hold_out: leave out the items that `validation_rows` takes.
    Raises:
        FileNotFoundError: there are no shards. ValueError: they do not fit the model, or hold too few rows.
    """

    # Whether row k depends only on k, and not on the number of processes.
    is_indexed = True

    def __init__(self, folder: str | Path, config, seed: int, hold_out: bool = True):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        check_fit(self.manifest, config)
        self.seed, self.is_image = seed, self.manifest["kind"] == "image"
        self.images_per_row = config.num_frames if self.is_image else 1
        self._files = [self.folder / shard["file"] for shard in self.manifest["shards"]]
        if hold_out:
            self._kept = [
                np.flatnonzero([not is_held_out(source) for source in read_column(file, "source")])
                for file in self._files
            ]
        else:
            self._kept = [np.arange(shard["rows"]) for shard in self.manifest["shards"]]
        self._counts = np.array([len(kept) for kept in self._kept])
        self.rows_per_epoch = int(self._counts.sum()) // self.images_per_row
        if not self.rows_per_epoch:
            raise ValueError(f"{self.folder} holds no row to train on; tokenize more clips or images.")
        # One shard is in use at a time, or two if a pack spans both.
        self._shard = lru_cache(maxsize=2)(self._read)
        self._order = lru_cache(maxsize=1)(self._shard_order)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the shards do."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]

    def row(self, k: int) -> torch.LongTensor:
        """The ids (L,) of row k = 0, 1, ... of an endless sequence."""
        epoch, index = divmod(k, self.rows_per_epoch)
        order, ends = self._order(epoch)
        found = []
        for place in range(index * self.images_per_row, (index + 1) * self.images_per_row):
            turn = bisect_right(ends, place)
            found.append(self._shard(epoch, order[turn])[place - (ends[turn - 1] if turn else 0)])
        if self.is_image:
            return image_rows(torch.stack(found).reshape(1, self.images_per_row, *self.manifest["grid"]))[0]
        return found[0].long()

    def _shard_order(self, epoch: int) -> tuple[list[int], list[int]]:
        """(numbers of the shards in the order of the epoch, cumulative numbers of rows)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._files))
        return order.tolist(), np.cumsum(self._counts[order]).tolist()

    def _read(self, epoch: int, number: int) -> torch.IntTensor:
        """The kept rows of a shard in the order of the epoch: ids (N, L) of videos, codes (N, h*w) of images."""
        codes = read_column(self._files[number], "codes")
        if len(codes) != self.manifest["shards"][number]["rows"]:
            raise ValueError(f"{self._files[number]} is damaged; check it with toto tokenize --verify {self.folder}.")
        kept = self._kept[number]
        codes = codes[np.random.default_rng([self.seed, epoch, number]).permutation(kept) if epoch else kept]
        if self.is_image:
            return torch.from_numpy(codes.astype(np.int32))
        # 64-bit ids would take four times the memory of the shard, so only a piece at a time is converted.
        pieces = np.array_split(codes, len(codes) // 256 + 1)
        return torch.cat([video_rows(piece).int() for piece in pieces])

    def state_dict(self) -> None:
        """None, since a row depends only on its number."""

    def load_state_dict(self, state: None) -> None:
        """Nothing to do."""


def validation_rows(
    shards: str | Path, val_shards: str | None, config, limit: int = VALIDATION_ROWS
) -> torch.LongTensor:
    """The validation rows, ids (N, L), at most `limit`; the same in every validation and on every rank.

    They are from `val_shards`, or else from the held-out items of `shards`. Empty if there are none.
    """
    manifest = read_manifest(val_shards or shards)
    check_fit(manifest, config)
    per_row = config.num_frames if manifest["kind"] == "image" else 1
    codes = read_codes(val_shards or shards, None if val_shards else "validation", limit * per_row)
    if manifest["kind"] == "image":
        codes = codes[: len(codes) // per_row * per_row].reshape(-1, per_row, *manifest["grid"])
        return image_rows(codes) if len(codes) else torch.empty(0, 0, dtype=torch.long)
    return video_rows(codes) if len(codes) else torch.empty(0, 0, dtype=torch.long)
