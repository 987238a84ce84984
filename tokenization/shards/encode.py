"""The inner loop of `toto tokenize`: clips are decoded ahead, encoded in batches of frames, and written as parts.

A batch may span clips but not parts, so a part's codes do not depend on what was encoded before it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.shards.code_parts import PartWriter
from tokenization.shards.parts import finished_parts, part_name, work_in_parts

if TYPE_CHECKING:
    import numpy as np

    from tokenization.processing_toto import TotoProcessor
    from tokenization.progress import tqdm
    from tokenization.sources.open import ClipSource
    from tokenization.video import Clip


class Encoder:
    """`processor.encode_frames`, timed."""

    def __init__(self, processor: TotoProcessor, batch_frames: int, exact: bool):
        self.processor, self.batch_frames, self.exact = processor, batch_frames, exact
        self.frames, self.seconds = 0, 0.0
        self.began: float | None = None
        self.ended = 0.0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Codes of a batch: uint8 (N, R, R, 3) -> uint16 (N, h*w)."""
        started = time.perf_counter()
        codes = self.processor.encode_frames(frames, batch_size=self.batch_frames, exact=self.exact)
        self.ended = time.perf_counter()
        self.began = started if self.began is None else self.began
        self.seconds += self.ended - started
        self.frames += len(frames)
        return codes.flatten(1).numpy().astype("uint16")

    def agreement(self, frames: np.ndarray) -> float:
        """The share of the codes of `frames` that are the same in fp32."""
        ours, exact = (self.processor.encode_frames(frames, self.batch_frames, exact) for exact in (self.exact, True))
        return (ours == exact).double().mean().item()

    @property
    def wall_seconds(self) -> float:
        """Seconds from the first frame to the last code, including waits."""
        return self.ended - self.began if self.began is not None else 0.0


class PartEncoder:
    """Encodes the clips of a part in full batches of frames and writes their codes to the part's file."""

    def __init__(self, encoder: Encoder, folder: Path, name: str, labels: list[str], num_frames: int):
        import numpy as np

        h, w = encoder.processor.grid
        side = encoder.processor.resolution
        self.encoder, self.num_frames = encoder, num_frames
        self.frames = np.empty((encoder.batch_frames, side, side, 3), np.uint8)
        self.filled = self.rows = 0
        self.waiting: deque[tuple[int, Clip]] = deque()  # (item, clip) whose codes are not complete
        self.codes = np.empty((0, h * w), np.uint16)  # of their frames that are encoded
        self.writer = PartWriter(folder, name, num_frames * h * w, labels)
        # Recorded once per dataset, in its first part.
        self.compares = not encoder.exact and name == part_name(0, 0)
        self.facts: dict = {}

    def add(self, item: int, clip: Clip) -> None:
        self.rows += 1
        frames, clip.frames = clip.frames, None  # copied below; a clip may wait long
        self.waiting.append((item, clip))
        while len(frames):
            taken = frames[: len(self.frames) - self.filled]
            self.frames[self.filled : self.filled + len(taken)] = taken
            self.filled += len(taken)
            frames = frames[len(taken) :]
            if self.filled == len(self.frames):
                self._encode()

    def skip(self, item: int, source: str, why: str) -> None:
        self.writer.skip(item, source, why)

    def close(self, items: int, shard_ends: bool) -> dict:
        """Encode the last, incomplete batch and finish the file."""
        if self.filled:
            self._encode()
        return self.writer.close(items, shard_ends, **self.facts)

    def abandon(self) -> None:
        self.writer.abandon()

    def _encode(self) -> None:
        import numpy as np

        batch = self.frames[: self.filled]
        if self.compares:
            self.facts["bf16_agreement"], self.compares = self.encoder.agreement(batch), False
        self.codes, self.filled = np.concatenate([self.codes, self.encoder(batch)]), 0
        while self.waiting and len(self.codes) >= self.num_frames:
            self.writer.add(*self.waiting.popleft(), self.codes[: self.num_frames].reshape(-1))
            self.codes = self.codes[self.num_frames :]


def encode_parts(
    source: ClipSource,
    encoder: Encoder,
    folder: Path,
    bar: tqdm,
    *,
    num_frames: int,
    items_per_part: int,
    limit: int | None,
    threads: int,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Write this rank's parts that are not finished yet.

    Args:
        bar: progress bar of files and rows. num_frames: frames T of a clip; 1 for an image.
        limit: rows wanted from all parts together. threads: items decoded at a time.
    Raises:
        OSError, ValueError: the source cannot be listed, or the disk is full; finished parts stay.
    """
    ahead = 2 * -(-encoder.batch_frames // num_frames) + 1  # clips of two batches
    clips, skipped = 0, 0
    done = work_in_parts(
        source,
        lambda name: PartEncoder(encoder, folder, name, list(source.label_names), num_frames),
        lambda: finished_parts(folder),
        items_per_part=items_per_part,
        limit=limit,
        threads=threads,
        items_ahead=threads + ahead,
        clips_each=ahead,
        rank=rank,
        world=world,
    )
    with contextlib.closing(done):
        for progress in done:
            clips, skipped = clips + (progress.clip is not None), skipped + progress.skipped
            if progress.item_ends:
                rate = encoder.frames / encoder.wall_seconds if encoder.frames else 0
                bar.set_postfix_str(f"{clips} clips, {rate:.1f} frames/s, {skipped} skipped", refresh=False)
                bar.update()
