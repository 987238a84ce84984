"""Rows of ids from token shards, accessed by number, in a new order in every epoch.

Row k of a source is the same row for any number of processes and after any resume. Rows are shuffled when they are
written. Every epoch shuffles the order of the shards and, from the second epoch on, the rows within each shard. A row
is read by itself, so its time hardly depends on the number of processes that share a shard; it is microseconds, and no
worker processes are needed. Only shards of earlier versions (parquet) are decoded whole.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import torch

from tokenization.sequences import CODE_OFFSET, IMAGE_START_ID, VIDEO_START_ID, fill_row, image_rows, video_rows
from tokenization.shards.files import HELD_OUT as HELD_OUT
from tokenization.shards.files import OldShard, RemoteShard, Shard, damaged, is_held_out, is_old, missing, read_column
from tokenization.shards.format import fingerprint, read_manifest, shard_file
from tokenization.storage.remote import READ_ONLY, Remote, is_remote, join
from training.rows.seeds import SEEDED, states

# Of 4 machines with 8 processes, each fetches 49 % of a shard in the first epoch and 98 % in later ones, where rows are
# in any order; of 8, 24 and 80 %; of 32, 6 and 27 %.
FEWEST_MACHINES = 4
# Protocols of which shards are always fetched whole.
WHOLE_FILES = (*READ_ONLY, "hf")
# Enough for a mean within a hundredth of a nat, and a minute on a CPU.
VALIDATION_ROWS = 256


def read_codes(shards: str | Path, which: str | None = None, limit: int | None = None) -> np.ndarray:
    """The codes in a folder of shards as uint16 (N, T, h, w), in the order in which they were written.

    Args:
        which: "train" or "validation" part, by a hash of the items' names; None takes every row.
        limit: number of rows at most.
    """
    manifest = read_manifest(shards)
    frames = manifest["num_frames"] if manifest["kind"] == "video" else 1
    found, count = [np.empty((0, frames * int(np.prod(manifest["grid"]))), np.uint16)], 0
    for shard in manifest["shards"]:
        if which == "validation" and shard.get("held_out") == 0:
            continue
        codes = read_column(shard_file(shards, shard), "codes")
        if which is not None:
            codes = codes[held_out_rows(shards, shard) == (which == "validation")]
        found.append(codes)
        count += len(codes)
        if limit is not None and count >= limit:
            break
    return np.concatenate(found)[:limit].reshape(-1, frames, *manifest["grid"])


def held_out_rows(folder: str | Path, shard: dict) -> np.ndarray:
    """Which rows of a shard are held out, (N,) bool. shard: its entry in the manifest."""
    if not is_old(shard):
        return read_column(shard_file(folder, shard), "held_out")
    return np.array([is_held_out(source) for source in read_column(shard_file(folder, shard), "source")])


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
        tiny = TotoConfig.from_preset("tiny")
        is_tiny = all(getattr(tiny, k) == v for k, v in wanted.items())
        shipped = "add --recipe tiny_cpu, whose model they fit, " if is_tiny else ""
        raise ValueError(
            f"These shards do not fit the model: {differences}. Tokenize with the model's tokenizer, {shipped}or set "
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
        folder: may be a URL; a shard is then copied to the cache when its first row is read, and the next one ahead,
            but see `read_in_blocks`.
        hold_out: leave out the items that `validation_rows` takes.
    Raises:
        FileNotFoundError: there are no shards. ValueError: they do not fit the model, or hold too few rows.
    """

    # Whether row k depends only on k, and not on the number of processes.
    is_indexed = True

    def __init__(self, folder: str | Path, config, seed: int, hold_out: bool = True):
        self.folder = folder if is_remote(folder) else Path(folder)
        self.manifest = read_manifest(self.folder)
        check_fit(self.manifest, config)
        self.seed, self.is_image = seed, self.manifest["kind"] == "image"
        self.images_per_row, self.row_length = config.num_frames if self.is_image else 1, config.row_length()
        self.hold_out, self._shards = hold_out, self.manifest["shards"]
        self._width = (1 if self.is_image else self.manifest["num_frames"]) * int(np.prod(self.manifest["grid"]))
        there = Remote(folder).files() if is_remote(folder) else dict.fromkeys(os.listdir(self.folder))
        if absent := next((shard["file"] for shard in self._shards if shard["file"] not in there), None):
            raise missing(join(self.folder, absent))
        self.in_blocks = False
        self._sizes = {name: info.get("size") for name, info in there.items() if info}
        # Manifests of earlier versions do not say what is held out, so every one of their shards is opened.
        self._kept_of_old = {
            number: np.flatnonzero(~held_out_rows(self.folder, shard))
            for number, shard in enumerate(self._shards)
            if hold_out and is_old(shard)
        }
        self._counts = np.array([self._count(number) for number in range(len(self._shards))])
        self.rows_per_epoch = int(self._counts.sum()) // self.images_per_row
        if not self.rows_per_epoch:
            raise ValueError(f"{self.folder} holds no row to train on; tokenize more clips or images.")
        # One shard is in use at a time, or two if a pack spans both.
        self._shard = lru_cache(maxsize=2)(self._open)
        self._order = lru_cache(maxsize=1)(self._shard_order)
        # One generator for all shards: a new one takes half as long as the permutation of 4,096 rows.
        self._states = lru_cache(maxsize=2)(self._seeded)
        self._bits, self._lock = np.random.PCG64(0), Lock()
        self._generator = np.random.Generator(self._bits)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when the rows do."""
        return fingerprint(self.manifest)

    def row(self, k: int) -> torch.LongTensor:
        """The ids (L,) of row k = 0, 1, ... of an endless sequence."""
        ids = np.empty(self.row_length, np.int64)
        self.fill(k, ids)
        return torch.from_numpy(ids)

    def fill(self, k: int, ids: np.ndarray) -> None:
        """Write row k into `ids`, int64 (L,)."""
        epoch, index = divmod(k, self.rows_per_epoch)
        _, ends = self._order(epoch)
        found = []
        for place in range(index * self.images_per_row, (index + 1) * self.images_per_row):
            turn = bisect_right(ends, place)
            shard, rows = self._shard(epoch, turn)
            found.append(shard.codes(rows[place - (ends[turn - 1] if turn else 0)]))
        fill_row(ids, IMAGE_START_ID if self.is_image else VIDEO_START_ID, found)

    def read_in_blocks(self, machines: int) -> None:
        """Fetch only what is around the rows that are read, if so many machines share the rows that it is less.

        Only from object stores: a web server may not know ranges, and the Hub limits the number of requests.

        Raises:
            ValueError: a shard has another size than the manifest says; then it is not the one that was written.
        """
        if not is_remote(self.folder) or Remote(self.folder).protocol in WHOLE_FILES or machines < FEWEST_MACHINES:
            return
        for entry in self._shards:
            if not is_old(entry) and self._sizes[entry["file"]] != entry["bytes"]:
                raise damaged(join(self.folder, entry["file"]))
        self.in_blocks = True

    def fetch_ahead(self, numbers: list[int]) -> None:
        """Fetch these rows in a thread, if they are read in blocks; shard by shard, in their order."""
        if self.in_blocks:
            Thread(target=self._fetch_rows, args=(numbers,), daemon=True).start()

    def _fetch_rows(self, numbers: list[int]) -> None:
        wanted: dict[tuple[int, int], list[int]] = {}
        for k in numbers:
            epoch, index = divmod(k, self.rows_per_epoch)
            _, ends = self._order(epoch)
            for place in range(index * self.images_per_row, (index + 1) * self.images_per_row):
                turn = bisect_right(ends, place)
                wanted.setdefault((epoch, turn), []).append(place - (ends[turn - 1] if turn else 0))
        with contextlib.suppress(OSError, ValueError):  # reading them meets the same error
            for (epoch, turn), places in wanted.items():
                shard, rows = self._open(epoch, turn)
                if isinstance(shard, RemoteShard):
                    shard.fetch(rows[places].tolist())

    def _count(self, number: int) -> int:
        """Rows of a shard to train on."""
        if number in self._kept_of_old:
            return len(self._kept_of_old[number])
        return self._shards[number]["rows"] - (self._shards[number]["held_out"] if self.hold_out else 0)

    def _shard_order(self, epoch: int) -> tuple[list[int], list[int]]:
        """(numbers of the shards in the order of the epoch, cumulative numbers of rows)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._shards))
        return order.tolist(), np.cumsum(self._counts[order]).tolist()

    def _open(self, epoch: int, turn: int) -> tuple[Shard | OldShard, np.ndarray]:
        """(the shard at this place in the order of the epoch, the numbers of its kept rows in theirs)."""
        number = self._order(epoch)[0][turn]
        entry, folder = self._shards[number], self.folder
        in_blocks = self.in_blocks and not is_old(entry)
        if is_remote(folder) and not in_blocks:
            folder = shard_file(folder, entry).parent
            self._fetch_ahead(epoch, turn)
        kind = OldShard if is_old(entry) else RemoteShard if in_blocks else Shard
        shard = kind(folder, entry, self._width)
        if not self.hold_out:
            kept = np.arange(entry["rows"])
        else:
            kept = self._kept_of_old[number] if number in self._kept_of_old else shard.kept()
        if len(kept) != self._counts[number]:
            raise damaged(shard.name)
        if not epoch:
            return shard, kept
        with self._lock:  # threads share the generator, if one still reads ahead while the next begins
            self._bits.state = self._states(epoch, turn // SEEDED)[turn % SEEDED]
            return shard, self._generator.permutation(kept)

    def _seeded(self, epoch: int, group: int) -> list[dict]:
        """Of the generators of `SEEDED` shards that follow in the order of the epoch: default_rng([seed, ...])'s."""
        order, _ = self._order(epoch)
        return states((self.seed, epoch), np.array(order[group * SEEDED : (group + 1) * SEEDED]))

    def _fetch_ahead(self, epoch: int, turn: int) -> None:
        """Copy the shard that follows in the order of the epoch to this machine, in a thread."""
        order, _ = self._order(epoch)
        if turn + 1 < len(order):
            Thread(target=self._fetch, args=(self._shards[order[turn + 1]],), daemon=True).start()

    def _fetch(self, entry: dict) -> None:
        with contextlib.suppress(OSError, ValueError):  # reading it meets the same error
            shard_file(self.folder, entry)

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
