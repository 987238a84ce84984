"""Resumable work on a source, in parts that any number of processes share; used for codes and for features.

A part is a number of consecutive items of a source. The division into parts depends on the dataset and the flags, not
on the number of processes. A part is written under a temporary name and is finished once its JSON exists, so a run may
be killed at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tokenization.terminal.stopping import Stopping

if TYPE_CHECKING:
    from tokenization.sources.open import ClipSource, Item
    from tokenization.video import Clip

# With a limit on the rows, the progress of other processes is read again after this time.
REFRESH_SECONDS = 10
END = object()


class Step(NamedTuple):
    """An item to be added to a part.

    part: name of the part. index: of the item in its part. item: None if the shard of the source is empty.
    part_ends, shard_ends: whether it is the last item of the part, and of the shard of the source.
    """

    part: str
    index: int
    item: Item | None
    part_ends: bool
    shard_ends: bool


class Part(Protocol):
    """The output of a part, which is built from its items. rows: clips added so far."""

    rows: int

    def add(self, item: int, clip: Clip) -> None:
        """Add a clip of the item with this index in the part; indices never decrease."""

    def skip(self, item: int, source: str, why: str) -> None:
        """Record an item that cannot be read, or not completely."""

    def close(self, items: int, shard_ends: bool) -> dict:
        """Write the part's files, the JSON last, which marks it as finished; returns the contents of the JSON."""

    def abandon(self) -> None:
        """Delete what was written so far."""


class Progress(NamedTuple):
    """A clip that was added to its part, or (clip None) the end of an item.

    skipped: whether the item could not be read. item_ends: whether the item is done.
    """

    clip: Clip | None
    skipped: bool
    item_ends: bool


def part_name(shard: int, chunk: int) -> str:
    """The name of a part; in alphabetical order, parts are in the order of the source."""
    return f"{shard:06d}-{chunk:06d}"


def on_main(state, action):
    """Run `action` in the first process; its result, or its error, is the same in all processes."""
    from accelerate.utils import broadcast_object_list

    outcome = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = action()
        except (ValueError, OSError) as error:
            if state.num_processes == 1:
                raise
            outcome[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def work_in_parts(
    source: ClipSource,
    make_part: Callable[[str], Part],
    finished: Callable[[], Mapping[str, dict]],
    *,
    items_per_part: int,
    limit: int | None,
    threads: int,
    items_ahead: int,
    clips_each: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Progress]:
    """Make this rank's parts that are not finished yet; yields after every clip and every item.

    Args:
        make_part: starts the part of this name. finished: looks for the finished parts, see `FinishedParts`.
        limit: rows wanted from all parts together. threads: items decoded at a time.
        items_ahead, clips_each: see `decode_ahead`.
    Raises:
        OSError, ValueError: the source cannot be listed, or the disk is full; finished parts stay.
        KeyboardInterrupt: Ctrl-C was typed, and the part that was begun then is finished.
    """
    from tokenization.sources.decode_ahead import decode_ahead

    done, looked, mine = finished(), time.monotonic(), {}  # mine: rows of the parts that are made here
    stopping = Stopping("stopping at the end of this part, which is kept", signal.SIGINT)
    todo = steps(source, items_per_part, rank, world, done)
    part: Part | None = None
    wanted = None
    with stopping, contextlib.closing(decode_ahead(todo, threads, items_ahead, clips_each)) as decoded:
        try:
            for step, clip, why in decoded:
                if part is None:
                    if limit is not None:
                        if world > 1 and time.monotonic() - looked > REFRESH_SECONDS:
                            done, looked = finished(), time.monotonic()  # parts of other processes count too
                        wanted = limit - rows_before(step.part, done, mine)
                        if wanted <= 0:
                            return
                    part = make_part(step.part)
                if clip is not None:
                    part.add(step.index, clip)
                elif why is not None:
                    part.skip(step.index, step.item.name, why)
                enough = part.rows == wanted
                if enough or (clip is None and step.part_ends):
                    info = part.close(step.index + (step.item is not None), step.shard_ends)
                    mine[step.part], part = info["rows"], None
                yield Progress(clip, why is not None, step.item is not None and (enough or clip is None))
                if enough:
                    return
                if stopping.asked and part is None:
                    raise KeyboardInterrupt
        finally:
            if part is not None:  # interrupted
                part.abandon()


class FinishedParts(Mapping):
    """The finished parts of a folder: name -> contents of its JSON, in the order of the source.

    The folder is listed once, and again by `look`. A JSON is read when it is asked for, and once.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, dict] = {}
        self.look()

    def look(self) -> FinishedParts:
        """List the folder again; returns self."""
        with os.scandir(self.folder) as entries:
            self._names = dict.fromkeys(sorted(e.name[:-5] for e in entries if e.name.endswith(".json")))
        return self

    def __getitem__(self, name: str) -> dict:
        if name not in self._read:
            if name not in self._names:
                raise KeyError(name)
            self._read[name] = json.loads((self.folder / f"{name}.json").read_text())
        return self._read[name]

    def __contains__(self, name) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def first_missing(shard: int, finished: Mapping[str, dict]) -> str | None:
    """The first part of a shard of the source that is not finished; None if all are. Reads the last one before it."""
    chunk = 0
    while part_name(shard, chunk) in finished:
        chunk += 1
    is_whole = chunk > 0 and finished[part_name(shard, chunk - 1)]["shard_ends"]
    return None if is_whole else part_name(shard, chunk)


def steps(
    source: ClipSource, items_per_part: int, rank: int, world: int, finished: Mapping[str, dict]
) -> Iterator[Step]:
    """The items of this rank that are not in a part that is finished now.

    A source with at least as many shards (files) as ranks is split by shards, so that no rank reads the files of
    another. Any other source is split by parts, in turn; listing then reads the items in between, unless they are
    paths, of which nothing is looked up.
    """
    by_shard, have = source.num_shards >= world, frozenset(finished)
    todo = [shard for shard in range(source.num_shards) if not by_shard or shard % world == rank]
    todo = [shard for shard in todo if first_missing(shard, finished) is not None]

    def is_mine(shard: int, chunk: int) -> bool:
        turn = shard if by_shard else shard + chunk
        return turn % world == rank and part_name(shard, chunk) not in have

    for shard in todo:
        items = source.list_items(shard, lambda index, shard=shard: is_mine(shard, index // items_per_part))
        index, item = 0, next(items, END)
        if item is END and is_mine(shard, 0):
            yield Step(part_name(shard, 0), 0, None, True, True)
        while item is not END:
            following = next(items, END)
            chunk, place = divmod(index, items_per_part)
            if item is not None:
                ends = following is END or place == items_per_part - 1
                yield Step(part_name(shard, chunk), place, item, ends, following is END)
            index, item = index + 1, following


def rows_before(part: str, finished: Mapping[str, dict], mine: dict[str, int]) -> int:
    """Number of rows in the finished parts before this one. mine: part -> rows, of those made here."""
    here = sum(rows for name, rows in mine.items() if name < part)
    return here + sum(finished[name]["rows"] for name in finished if name < part and name not in mine)
