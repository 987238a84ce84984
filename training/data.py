"""Token shards to batches of rows: an endless stream that resumes exactly, and a fixed validation set.

Rows were shuffled when they were written; only the order of the shards changes, from epoch to epoch. Reading is far
faster than training (tens of millions of tokens a second), so there are no worker processes to lose state in.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tokenization.sequences import CODE_OFFSET, image_rows, video_rows
from tokenization.tokenize_dataset import read_manifest

# Without --val_shards, one source in HELD_OUT is validation: whole sources, so that no window of a video is in both.
HELD_OUT = 20
# Enough for a mean within a hundredth of a nat, and a minute on a CPU.
VALIDATION_ROWS = 256


def is_held_out(source: str) -> bool:
    """Whether a source is validation where a folder of shards has to serve both ends."""
    return zlib.crc32(source.encode()) % HELD_OUT == 0


def read_codes(shards: str | Path, which: str | None = None, limit: int | None = None) -> np.ndarray:
    """Codes of a folder of shards as uint16 (N, T, h, w).

    Args:
        which: "train" or "validation" part by source hash; None takes every row.
        limit: at most so many rows.
    """
    shards = Path(shards)
    manifest = read_manifest(shards)
    rows = []
    for row in _rows(shards, [shard["file"] for shard in manifest["shards"]]):
        if which is None or is_held_out(row["source"]) == (which == "validation"):
            rows.append(np.asarray(row["codes"], dtype=np.uint16))
        if limit is not None and len(rows) == limit:
            break
    frames = manifest["num_frames"] if manifest["kind"] == "video" else 1
    return np.stack(rows).reshape(-1, frames, *manifest["grid"]) if rows else np.empty((0, frames, *manifest["grid"]))


def _rows(shards: Path, files: list[str]):
    from datasets import load_dataset

    paths = [str(shards / file) for file in files]
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"The shard {path} named by the manifest is missing; run toto tokenize again.")
    return load_dataset("parquet", data_files={"train": paths}, split="train", streaming=True).with_format("numpy")


def check_fit(manifest: dict, config) -> None:
    """Refuse shards whose tokens or geometry are not the model's.

    Raises:
        ValueError: what differs, and the model settings that would fit.
    """
    h, w = manifest["grid"]
    frames = manifest["num_frames"] if manifest["kind"] == "video" else config.num_frames
    wanted = {
        "vocab_size": CODE_OFFSET + manifest["num_codes"],
        "tokens_per_frame": h * w,
        "num_frames": frames,
    }
    unlike = {k: v for k, v in wanted.items() if getattr(config, k) != v}
    if unlike:
        told = ", ".join(f"{k} {getattr(config, k)} (shards: {v})" for k, v in unlike.items())
        fit = {**wanted, "max_position_embeddings": 2 + frames * h * w}
        raise ValueError(
            f"These shards do not fit the model: {told}. Tokenize with the model's tokenizer, or give the model "
            f"--config '{str(fit).replace(chr(39), chr(34))}'."
        )
    if config.max_position_embeddings < 2 + frames * h * w:
        raise ValueError(
            f"A row of these shards has {2 + frames * h * w} ids but the model takes {config.max_position_embeddings}; "
            f"raise max_position_embeddings in --config."
        )


class RowStream:
    """Endless rows of ids (L,) of one rank; `state_dict` after a row, `load_state_dict`, and the next row is the same.

    A row is a video of the shards, or a pack of `config.num_frames` of their images.
    """

    def __init__(self, shards: str | Path, config, seed: int, rank: int = 0, world: int = 1, hold_out: bool = True):
        self.shards = Path(shards)
        self.manifest = read_manifest(self.shards)
        check_fit(self.manifest, config)
        self.images_per_row = config.num_frames if self.manifest["kind"] == "image" else 1
        self.seed, self.rank, self.world, self.hold_out = seed, rank, world, hold_out
        self.epoch, self._position = 0, None

    def _open(self, epoch: int):
        from datasets.distributed import split_dataset_by_node

        files = [shard["file"] for shard in self.manifest["shards"]]
        order = np.random.default_rng([self.seed, epoch]).permutation(len(files))
        rows = _rows(self.shards, [files[i] for i in order])
        return split_dataset_by_node(rows, self.rank, self.world) if self.world > 1 else rows

    def __iter__(self) -> Iterator[torch.LongTensor]:
        pack = []
        while True:
            self._dataset = self._open(self.epoch)
            if self._position is not None:
                self._dataset.load_state_dict(self._position)
                self._position = None
            found = False
            for row in self._dataset:
                found = True
                if self.hold_out and is_held_out(row["source"]):
                    continue
                pack.append(np.asarray(row["codes"]))
                if len(pack) == self.images_per_row:
                    codes, pack = np.stack(pack), []
                    if self.manifest["kind"] == "image":
                        yield image_rows(codes.reshape(1, self.images_per_row, *self.manifest["grid"]))[0]
                    else:
                        yield video_rows(codes)[0]
            if not found and self.epoch == 0:
                raise ValueError(
                    f"Rank {self.rank} of {self.world} finds no row in {self.shards}; use fewer processes."
                )
            self.epoch += 1

    def state_dict(self) -> dict:
        """Where the stream stands, as JSON; taken between rows (of images: between packs)."""
        return {"epoch": self.epoch, "position": self._dataset.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self._position = state["epoch"], state["position"]


def validation_rows(shards: str | Path, val_shards: str | None, config) -> torch.LongTensor:
    """The rows that every validation uses, ids (N, L), at most VALIDATION_ROWS; the same on every rank.

    From `val_shards`, or else from the held-out sources of `shards`. Empty where there are none.
    """
    manifest = read_manifest(val_shards or shards)
    check_fit(manifest, config)
    per_row = config.num_frames if manifest["kind"] == "image" else 1
    codes = read_codes(val_shards or shards, None if val_shards else "validation", VALIDATION_ROWS * per_row)
    if manifest["kind"] == "image":
        codes = codes[: len(codes) // per_row * per_row].reshape(-1, per_row, *manifest["grid"])
        return image_rows(codes) if len(codes) else torch.empty(0, 0, dtype=torch.long)
    return video_rows(codes) if len(codes) else torch.empty(0, 0, dtype=torch.long)
