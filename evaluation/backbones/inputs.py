"""The inputs of frozen backbones, from which a streamed probe computes features whenever it needs them.

Token ids and small pictures are kept in mapped files, in the place of features. Frames of files that can be read one by
one are not kept but read again; those of tables, archives and drawn worlds are kept, since their rows are not at hand.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch

from evaluation.backbones.contract import Backbone, Features
from evaluation.backbones.extraction import ClipSet, job_key
from tokenization.sources.open import ClipSource, Item

DECODERS = 4  # files that are read at a time


@dataclass(frozen=True)
class InputJob:
    """Has `extract` keep what a backbone reads, in place of its features. kept: False where it is read again."""

    backbone: Backbone
    kept: bool

    def key(self) -> str:
        return job_key(self.backbone.device, {"inputs": self.backbone.describe_inputs(), "kept": self.kept})

    def run(self, inputs: torch.Tensor) -> dict[int, tuple[torch.Tensor, None]]:
        """{0: (inputs (B, ...), uint8 or the smallest integers that hold ids, None)}, or nothing."""
        return {0: (_narrow(inputs), None)} if self.kept else {}


def input_jobs(backbones: list[Backbone], source: ClipSource) -> list[InputJob]:
    """One for each backbone; equal ones share a folder."""
    can_read_again = source.lists_paths and source.split_name is not None  # a drawn world has no files
    return [InputJob(each, each.reads != "frames" or not can_read_again) for each in backbones]


def _narrow(inputs: torch.Tensor) -> torch.Tensor:
    """The same numbers, ids as int16 if they fit, else as int32."""
    if inputs.dtype != torch.int64:
        return inputs
    return inputs.to(torch.int16 if int(inputs.max()) < 2**15 else torch.int32)


@dataclass(frozen=True)
class KeptInputs:
    """Inputs of N clips in a mapped array, which `take` does not copy. rows: their places in the array; None: all."""

    array: torch.Tensor
    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.array if self.rows is None else self.rows)

    def take(self, rows: torch.Tensor) -> KeptInputs:
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """The inputs of some clips, by their numbers."""
        found = self.array[rows if self.rows is None else self.rows[rows]]
        return found.long() if found.dtype in (torch.int16, torch.int32) else found

    def facts(self) -> str:
        """A hash of 16 clips."""
        rows = torch.from_numpy(np.linspace(0, len(self) - 1, 16).astype(np.int64)).unique()
        return hashlib.sha256(self.read(rows).contiguous().numpy().tobytes()).hexdigest()


class ReadInputs:
    """Inputs of N clips whose files are decoded again whenever they are asked for.

    Args:
        source: of the clips. names: of the item of each clip, (N,); clips of one item are its clips in their order.
        prepare: (frames (B, T, R, R, 3)) -> inputs. change: as in `extract`.
    """

    def __init__(self, source: ClipSource, names: list[str], prepare: Callable, change: Callable | None):
        self.source, self.prepare, self.change = source, prepare, change
        seen: Counter = Counter()
        self.clips = []  # (name of the item, number of the clip among those of the item)
        for name in names:
            self.clips.append((name, seen[name]))
            seen[name] += 1
        self._items: dict[str, list[Item]] | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, rows: torch.Tensor) -> ReadInputs:
        taken = ReadInputs(self.source, [], self.prepare, self.change)
        taken.clips, taken._items = [self.clips[row] for row in rows.tolist()], self._items
        return taken

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """The inputs of some clips, by their numbers. Raises ValueError for a clip that is gone."""
        if self._items is None:
            self._items = {name: [] for name, _ in self.clips}
            for shard in range(self.source.num_shards):
                for item in self.source.list_items(shard):
                    if item.name in self._items:
                        self._items[item.name].append(item)
        with ThreadPoolExecutor(DECODERS) as pool:
            frames = np.stack(list(pool.map(self._frames, [self.clips[row] for row in rows.tolist()])))
        return self.prepare(frames)

    def _frames(self, clip: tuple[str, int]) -> np.ndarray:
        name, number = clip
        clips = chain.from_iterable(item.clips() for item in self._items[name])
        found = next(islice(clips, number, None), None)
        if found is None:
            raise ValueError(f"{name} has changed since the probe began; start it again with --feature_cache none.")
        return found.frames if self.change is None else self.change(found.frames, found.source)

    def facts(self) -> str:
        """A hash of the clips' names."""
        return hashlib.sha256("\n".join(f"{name} {number}" for name, number in self.clips).encode()).hexdigest()


Inputs = KeptInputs | ReadInputs


def with_inputs(clips: ClipSet, jobs: list[InputJob], source: ClipSource, change: Callable | None) -> None:
    """Puts the `Inputs` of every job in the place of what `extract` kept for it."""

    def open_inputs(job: InputJob, kept: list[Features]) -> Inputs:
        if job.kept:
            return KeptInputs(kept[0].pooled[0])
        is_image = source.kind == "image"
        return ReadInputs(source, clips.sources, lambda frames: job.backbone.prepare(frames, image=is_image), change)

    clips.features = [[open_inputs(*each)] for each in zip(jobs, clips.features, strict=True)]


def ahead(calls: Iterator[Callable]) -> Iterator:
    """The results of calls, in their order; the next one runs in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="read inputs") as pool:
        waiting = None
        for call in calls:
            following = pool.submit(call)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
