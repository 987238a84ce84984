"""The inner loop of `toto tokenize`: clips are decoded ahead, encoded in batches of frames, and written as parts.

A batch may span clips but not parts, so a part's codes do not depend on what was encoded before it. While a batch is
encoded, the next one is filled.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.shards.code_parts import PartWriter
from tokenization.shards.parts import FinishedParts, part_name, work_in_parts

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tokenization.processing_toto import TotoProcessor
    from tokenization.sources.open import ClipSource
    from tokenization.terminal.progress import tqdm
    from tokenization.video import Clip


# Batches that may be at the encoder while the next one is filled.
AHEAD = 2


class Encoder:
    """`processor.encode_batch` in threads, timed: the caller fills a batch while others are encoded.

    On a GPU one thread waits for codes while the other starts the next batch, so that the GPU always has one to go on
    with. On a CPU, where encoding is the work itself, batches follow one another.

    buffers: uint8 tensors (batch_frames, R, R, 3) to be filled in turn; pinned where the tokenizer is on a GPU, so that
    copies do not wait. frames: number encoded. seconds: in which a batch was at the encoder.
    """

    def __init__(self, processor: TotoProcessor, batch_frames: int, exact: bool):
        import torch

        self.processor, self.batch_frames, self.exact = processor, batch_frames, exact
        on_gpu = processor.visual_tokenizer.device.type == "cuda"
        shape = (batch_frames, processor.resolution, processor.resolution, 3)
        self.buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(AHEAD + 1)]
        self.frames, self.seconds = 0, 0.0
        self.began: float | None = None
        self.ended = 0.0
        self._threads = ThreadPoolExecutor(AHEAD if on_gpu else 1, thread_name_prefix="encode")
        self._starting, self._timing = threading.Lock(), threading.Lock()
        self._busy, self._since = 0, 0.0

    def start(self, frames: torch.Tensor) -> Future[np.ndarray]:
        """Codes of a batch: uint8 (N, R, R, 3) -> uint16 (N, h*w). The frames must not change until they are there."""
        return self._threads.submit(self._codes, frames)

    def _codes(self, frames: torch.Tensor) -> np.ndarray:
        with self._timing:
            self._since = self._since if self._busy else time.perf_counter()
            self.began = self._since if self.began is None else self.began
            self._busy += 1
        try:
            with self._starting:  # which sets how this process computes in float32
                codes = self.processor.encode_batch(frames, self.exact)
            return codes.cpu().flatten(1).numpy().astype("uint16")
        finally:
            with self._timing:
                self._busy -= 1
                self.ended = time.perf_counter()
                self.seconds += 0.0 if self._busy else self.ended - self._since
                self.frames += len(frames)

    def agreement(self, frames: torch.Tensor) -> float:
        """The share of the codes of `frames` that are the same in fp32."""
        ours, exact = (self.processor.encode_batch(frames, exact).cpu() for exact in (self.exact, True))
        return (ours == exact).double().mean().item()

    @property
    def wall_seconds(self) -> float:
        """Seconds from the first frame to the last code, including waits."""
        return self.ended - self.began if self.began is not None else 0.0

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


class PartEncoder:
    """Encodes the clips of a part in full batches of frames and writes their codes to the part's file."""

    def __init__(self, encoder: Encoder, folder: Path, name: str, labels: list[str], num_frames: int):
        import numpy as np

        h, w = encoder.processor.grid
        self.encoder, self.num_frames = encoder, num_frames
        self.filled = self.rows = self.batches = 0
        self.at_work: deque[Future] = deque()  # codes of the batches at the encoder
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
            batch = self._batch.numpy()
            taken = frames[: len(batch) - self.filled]
            batch[self.filled : self.filled + len(taken)] = taken
            self.filled += len(taken)
            frames = frames[len(taken) :]
            if self.filled == len(batch):
                self._encode()

    def skip(self, item: int, source: str, why: str) -> None:
        self.writer.skip(item, source, why)

    def close(self, items: int, shard_ends: bool) -> dict:
        """Encode the last, incomplete batch and finish the file."""
        if self.filled:
            self._encode()
        while self.at_work:
            self._take()
        return self.writer.close(items, shard_ends, **self.facts)

    def abandon(self) -> None:
        wait(self.at_work)  # their buffers are those of the next part
        self.writer.abandon()

    @property
    def _batch(self) -> torch.Tensor:
        return self.encoder.buffers[self.batches % len(self.encoder.buffers)]

    def _encode(self) -> None:
        batch = self._batch[: self.filled]
        if self.compares:
            self.facts["bf16_agreement"], self.compares = self.encoder.agreement(batch), False
        self.at_work.append(self.encoder.start(batch))
        self.batches, self.filled = self.batches + 1, 0
        if len(self.at_work) == len(self.encoder.buffers):  # the next buffer is not free yet
            self._take()

    def _take(self) -> None:
        """Wait for the first batch at the encoder, and write the rows that are complete."""
        import numpy as np

        self.codes = np.concatenate([self.codes, self.at_work.popleft().result()])
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
    clips, skipped, finished = 0, 0, FinishedParts(folder)
    done = work_in_parts(
        source,
        lambda name: PartEncoder(encoder, folder, name, list(source.label_names), num_frames),
        finished.look,
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
