"""Endless, mixed batches of frames for training tokenizers, which resume exactly."""

from __future__ import annotations

import atexit
import itertools
import json
import queue
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tokenization.sampling import Sampling
from tokenization.shards.files import FEW, held_out_of_few, is_held_out
from tokenization.video import Clip
from training.flags import require

# Number of batches within which frames are shuffled: many scenes per batch, little memory (25 MB at 64 px, batch 32).
CHUNK = 16
# Few, since neighbouring frames are nearly equal and a batch should show many scenes.
FRAMES_PER_CLIP = 4
# That Python's end waits for a thread that reads ahead.
LEAVING_SECONDS = 10


class FrameStream:
    """Endless uint8 batches (B, R, R, 3); the sources are drawn in turn and shuffled in chunks of 16 batches.

    Saving `state_dict()` after a batch and loading it gives the same next batch: the chunk is read again from its
    start. Batches are prepared in a thread, a few ahead.
    """

    def __init__(
        self,
        datasets: list[str],
        split: str,
        resolution: int,
        batch_size: int,
        *,
        crops: int = 1,
        hold_out: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        config_name: str | None = None,
    ):
        """
        Args:
            hold_out: leave out one item in 20, those that `held_out_frames` takes from the same split.
            rank, world: this process takes every world-th item, from the rank-th on.
            config_name: configuration of every source but toyworld.
        """
        self.datasets, self.split, self.resolution, self.batch_size = datasets, split, resolution, batch_size
        self.crops, self.hold_out, self.seed, self.rank, self.world = crops, hold_out, seed, rank, world
        self.config_name = config_name
        self._state = {"chunk": 0, "batch": 0, "positions": [[0, 0, 0] for _ in datasets]}

    def _clips(self, dataset: str, position: list[int]) -> Iterator[tuple[np.ndarray, list[int]]]:
        from tokenization.sources.open import config_of

        options = {"rank": self.rank, "world": self.world, "config_name": config_of(dataset, self.config_name)}
        sampling = Sampling(FRAMES_PER_CLIP, resolution=self.resolution, crops=self.crops, seed=self.seed)
        for clip, after in clips(dataset, self.split, position, sampling, hold_out=self.hold_out, **options):
            yield clip.frames, after

    def _make(self) -> Iterator[tuple[np.ndarray, dict]]:
        """(batch, state after it)."""
        state = self._state
        positions = [list(position) for position in state["positions"]]
        streams = [self._clips(dataset, position) for dataset, position in zip(self.datasets, positions, strict=True)]
        chunk, first = state["chunk"], state["batch"]
        while True:
            began, frames = json.loads(json.dumps(positions)), []
            count = 0
            while count < CHUNK * self.batch_size:
                for i, stream in enumerate(streams):
                    clip, positions[i] = next(stream)
                    frames.append(clip)
                    count += len(clip)
            frames = np.concatenate(frames)
            order = np.random.default_rng([self.seed, self.rank, chunk]).permutation(len(frames))
            for batch in range(first, CHUNK):
                after = {"chunk": chunk, "batch": batch + 1, "positions": began}
                yield frames[order[batch * self.batch_size :][: self.batch_size]], after
            chunk, first = chunk + 1, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch, state in prefetch(self._make()):
            self._state = state
            yield batch

    def state_dict(self) -> dict:
        """The position of the stream, as JSON."""
        return self._state

    def load_state_dict(self, state: dict) -> None:
        self._state = state


def clips(
    dataset: str,
    split: str | None,
    position: list[int],
    sampling: Sampling,
    *,
    rank: int,
    world: int,
    hold_out: bool = False,
    only_held_out: bool = False,
    repeat: bool = True,
    **columns,
) -> Iterator[tuple[Clip, list[int]]]:
    """(clip, position of the next one) of this process's share of a source, which is every world-th item.

    In every epoch, folders are shuffled again and random crops differ. Parquet and tar files are read in the order in
    which they were written.

    Args:
        position: [epoch, items before, clips of the item]; [0, 0, 0] is the start.
        hold_out, only_held_out: leave out one item in 20, or take only those.
        repeat: start a new epoch after the last item; otherwise the iteration ends.
        sampling: its seed determines the crops of the first epoch and the order of every epoch.
        columns: `image_column`, `kind` and `config_name` of `open_source`.
    Raises:
        ValueError: nothing in the source can be read.
    """
    from tokenization.sources.open import open_source

    epoch, items_before, clips_before = position
    while True:
        opened = open_source(dataset, split, replace(sampling, seed=sampling.seed + epoch), limit=10**9, **columns)
        items, also = _items(opened), held_out_too(opened) if hold_out or only_held_out else None
        if opened.lists_paths and opened.expected is None:  # a folder, perhaps sorted by class; toyworld is mixed
            items = list(items)
            np.random.default_rng([sampling.seed, epoch]).shuffle(items)
        found = items_before > 0 or clips_before > 0
        for index, item in enumerate(items):
            if index < items_before or index % world != rank:
                continue
            if (hold_out or only_held_out) and (is_held_out(item.name) or item.name == also) != only_held_out:
                continue
            for count, clip in enumerate(_clips_of(item), start=1):
                found = True
                if index > items_before or count > clips_before:
                    yield clip, [epoch, index, count]
        share = (
            f" in the share of process {rank} of {world}; there may be fewer files than processes."
            if world > 1
            else "; check the source."
        )
        require(found, f"No clip of '{dataset}' could be read{share}")
        if not repeat:
            return
        epoch, items_before, clips_before = epoch + 1, 0, 0


def prefetch(batches: Iterator, depth: int = 4) -> Iterator:
    """Run a generator in a thread, `depth` items ahead; exceptions are raised in the caller.

    The thread ends with its items, or soon after the returned generator is closed or dropped.
    """
    ready: queue.Queue = queue.Queue(depth)
    end, stop = object(), threading.Event()

    def put(item) -> bool:
        """False once the caller has stopped."""
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            if all(map(put, batches)):
                put(end)
        except BaseException as error:
            put(error)
        finally:
            atexit.unregister(leave)

    def leave():  # a thread that Python's end meets inside of torch would abort the process
        stop.set()
        thread.join(LEAVING_SECONDS)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    atexit.register(leave)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def held_out_frames(
    dataset: str,
    split: str,
    resolution: int,
    count: int,
    only_held_out: bool = False,
    config_name: str | None = None,
) -> np.ndarray:
    """Frames to evaluate on, the first one of each file or row, uint8 (N, R, R, 3).

    Args:
        only_held_out: take the items that `FrameStream(hold_out=True)` leaves out, for a split that is trained on.
        config_name: configuration of the dataset; toyworld has none.
    Raises:
        ValueError: nothing in the split can be read.
    """
    from tokenization.sources.open import config_of, open_source

    frames = []
    sampling = Sampling(num_frames=1, resolution=resolution)
    source = open_source(dataset, split, sampling, limit=10**9, config_name=config_of(dataset, config_name))
    also = held_out_too(source) if only_held_out else None
    for item in _items(source):
        if not only_held_out or is_held_out(item.name) or item.name == also:
            frames.extend(clip.frames for clip in itertools.islice(_clips_of(item), 1))
        if len(frames) == count:
            break
    require(
        bool(frames),
        f"No clip of the {split} split of '{dataset}' could be read"
        + (
            ", or it has one item, of which none can be held out; name another split with --eval_split."
            if only_held_out
            else "; name another split with --eval_split."
        ),
    )
    return np.concatenate(frames)


def held_out_too(source) -> str | None:
    """The name of the item that is held out of a source of so few that chance holds out none, as of shards; else None.

    None as well if their number is not known without reading all of them, as of tar files.
    """
    count = source.count_items()
    return held_out_of_few(item.name for item in _items(source)) if count is not None and count <= FEW else None


def _items(source) -> Iterator:
    """All items of a source, not decoded."""
    return itertools.chain.from_iterable(map(source.list_items, range(source.num_shards)))


def _clips_of(item) -> Iterator[Clip]:
    """The clips of an item; a damaged file gives a warning and is skipped."""
    try:
        yield from item.clips()
    except (ValueError, OSError) as error:
        warnings.warn(f"{item.name}: {error}", stacklevel=2)
