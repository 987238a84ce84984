"""Long work on a source in parts that any number of processes share and that survive a kill: for codes and features.

A part is some consecutive items of a source. Which items make a part follows from the dataset and the flags alone,
never from who does the work. A part is written under a temporary name and counts once the JSON next to it is there, so
a run may be killed at any instant.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from tokenization.sources.open import ClipSource, Item
    from tokenization.video import Clip

# How long the progress of other processes may go unnoticed where a limit asks how much is done.
REFRESH_SECONDS = 10


class Step(NamedTuple):
    """An item on its way to a part. item: None where a shard of the source is empty. index: of the item in its part.
    part_ends, shard_ends: whether it is the last item of the part, and of the shard of the source."""

    part: str
    index: int
    item: Item | None
    part_ends: bool
    shard_ends: bool


class Part(Protocol):
    """What is made of the items of a part. rows: clips added so far."""

    rows: int

    def add(self, item: int, clip: Clip) -> None:
        """Take a clip of the item with this index in the part; indices never fall."""

    def skip(self, item: int, source: str, why: str) -> None:
        """Record an item that cannot be read, or not to its end."""

    def close(self, items: int, shard_ends: bool) -> dict:
        """Write the part's files, its JSON last, from which on it counts; returns what the JSON holds."""

    def abandon(self) -> None:
        """Delete what was written so far."""


class Progress(NamedTuple):
    """A clip that was added to its part, or (None) the end of an item. skipped: whether the item was bad. item_ends:
    whether nothing more is read of an item."""

    clip: Clip | None
    skipped: bool
    item_ends: bool


def part_name(shard: int, chunk: int) -> str:
    """Sorted by name, parts are in the order of the source."""
    return f"{shard:06d}-{chunk:06d}"


def on_main(state, action):
    """The result of `action()`, run by the first process, in all of them; or its error, in all of them."""
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
    finished: Callable[[], dict[str, dict]],
    *,
    items_per_part: int,
    limit: int | None,
    threads: int,
    items_ahead: int,
    clips_each: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Progress]:
    """Make the parts that are rank's and not finished; yields after every clip and every item.

    Args:
        make_part: begins the part of this name. finished: reads the finished parts, see `finished_parts`.
        limit: rows wanted of all parts together. threads: items decoded at a time.
        items_ahead, clips_each: see `decode_ahead`.
    Raises:
        OSError, ValueError: the source cannot be listed, or the disk is full; finished parts stay.
    """
    from tokenization.sources.decode_ahead import decode_ahead

    done, looked = finished(), time.monotonic()
    todo = steps(source, items_per_part, rank, world, dict(done))
    part: Part | None = None
    wanted = None
    with contextlib.closing(decode_ahead(todo, threads, items_ahead, clips_each)) as decoded:
        try:
            for step, clip, why in decoded:
                if part is None:
                    if limit is not None:
                        if world > 1 and time.monotonic() - looked > REFRESH_SECONDS:
                            done, looked = finished() | done, time.monotonic()  # the others' parts count too
                        wanted = limit - rows_before(step.part, done)
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
                    done[step.part], part = info, None
                yield Progress(clip, why is not None, step.item is not None and (enough or clip is None))
                if enough:
                    return
        finally:
            if part is not None:  # cut off in its middle
                part.abandon()


def finished_parts(folder: Path) -> dict[str, dict]:
    """The finished parts of a folder: name -> what their JSON says."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def steps(source: ClipSource, items_per_part: int, rank: int, world: int, finished: dict[str, dict]) -> Iterator[Step]:
    """The items that are rank's to encode and not in a finished part.

    A source of at least as many shards (files) as there are ranks is split by shards, so that no rank reads a byte of
    another's; any other by parts, in turn, where listing the items in between reads them unless they are paths.
    """
    by_shard = source.num_shards >= world

    def is_mine(shard: int, chunk: int) -> bool:
        turn = shard if by_shard else shard + chunk
        return turn % world == rank and part_name(shard, chunk) not in finished

    for shard in range(source.num_shards):
        if (by_shard and shard % world != rank) or _is_finished(shard, finished):
            continue
        items = source.list_items(shard)
        index, item = 0, next(items, None)
        if item is None and is_mine(shard, 0):
            yield Step(part_name(shard, 0), 0, None, True, True)
        while item is not None:
            following = next(items, None)
            chunk, place = divmod(index, items_per_part)
            if is_mine(shard, chunk):
                ends = following is None or place == items_per_part - 1
                yield Step(part_name(shard, chunk), place, item, ends, following is None)
            index, item = index + 1, following


def _is_finished(shard: int, finished: dict[str, dict]) -> bool:
    chunk = 0
    while (info := finished.get(part_name(shard, chunk))) is not None:
        if info["shard_ends"]:
            return True
        chunk += 1
    return False


def rows_before(part: str, finished: dict[str, dict]) -> int:
    """Rows of the finished parts that come before this one."""
    return sum(info["rows"] for name, info in finished.items() if name < part)
