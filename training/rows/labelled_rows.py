"""Training rows from labelled clips, accessed by number.

Row k of a run, with its random crop and the clip that it is mixed with, depends only on the seed and k. So runs are the
same for any number of processes and resume exactly.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from training.finetune_args import AugmentArgs
from training.rows.augment import Augment, mix
from training.rows.clips import Clips

# Rows in preparation per thread.
AHEAD = 4


class LabelledRows:
    """Training rows by number, for `RowStream`: {"codes" (T, h, w) or "frames" (T, R, R, 3), "target" (C,), "number"}.

    target: float32, the shares of the classes after label smoothing and mixing. Every epoch has every clip once, in a
    new order.

    Args:
        augment: augmentation of pixels; None if the clips are codes.
        workers: threads that prepare the next rows.
    """

    is_indexed = True

    def __init__(
        self, clips: Clips, num_classes: int, args: AugmentArgs, augment: Augment | None, seed: int, workers: int = 0
    ):
        self.clips, self.args, self.augment, self.seed = clips, args, augment, seed
        self._order = lru_cache(maxsize=2)(self._draw_order)
        smooth = args.label_smoothing
        self._targets = (np.eye(num_classes) * (1 - smooth) + smooth / num_classes).astype(np.float32)
        self._pool = ThreadPoolExecutor(workers) if workers and augment is not None else None
        self._ahead: dict[int, Future] = {}
        self._last, self._workers = None, workers

    @property
    def rows_per_epoch(self) -> int:
        return len(self.clips)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the files and their labels."""
        content = json.dumps([self.clips.sources, self.clips.labels.tolist()])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _clip(self, k: int) -> int:
        """The index of the clip in row k."""
        epoch, index = divmod(k, len(self.clips))
        return int(self._order(epoch)[index])

    def _draw_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.clips))

    def row(self, k: int) -> dict:
        """Row k = 0, 1, ... of an endless sequence."""
        clip = self._clip(k)
        if self.augment is None:
            target = self._targets[self.clips.labels[clip]]
            return {"codes": self.clips.codes[clip], "target": target, "number": k}
        if self._pool is None:
            return self._made(k)
        stride = 1 if self._last is None else max(1, k - self._last)  # a process takes every world-th row
        self._last = k
        for number in range(k, k + stride * AHEAD * self._workers, stride):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._made, number)
        made = self._ahead.pop(k)
        self._ahead = {number: future for number, future in self._ahead.items() if number > k}
        return made.result()

    def _made(self, k: int) -> dict:
        frames, target = self._varied(self._clip(k), [self.seed, k, 0])
        if self.args.mixup or self.args.cutmix:
            generator = np.random.default_rng([self.seed, k, 1])
            other = self._varied(int(generator.integers(len(self.clips))), [self.seed, k, 3])
            both = zip((frames, target), other, strict=True)
            frames, target = mix(*both, self.args.mixup, self.args.cutmix, generator)
        return {"frames": frames, "target": target.astype(np.float32), "number": k}

    def _varied(self, clip: int, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
        frames, label = self.clips.pixels(clip)
        return self.augment(frames, np.random.default_rng(seed)), self._targets[label]

    def state_dict(self) -> None:
        """None, since a row depends only on its number."""

    def load_state_dict(self, state: None) -> None:
        """Nothing to do."""
