"""Which source gives each row of a run: random draws that depend only on the seed and the number of the row.

Every process draws for all of them, so that all know how many rows each source has given. With 256 processes that is
256 draws to a row of a process, so whole blocks are drawn at a time, and counted only where this process has a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np

from training.args import Source
from training.rows.pixel_rows import Ended
from training.rows.seeds import SEEDED, states

# Draws from one generator, and how many such blocks are drawn at a time at most.
BLOCK, MOST_BLOCKS = 4096, 8


class Position(NamedTuple):
    """Draws so far of all processes, by source the rows drawn, and which sources have left the mixture."""

    drawn: int
    counts: tuple[int, ...]
    left: tuple[bool, ...]


class Draws(NamedTuple):
    """The draws from `begin.drawn` to `end`, in which no source leaves the mixture.

    Fields:
        begin: position before them. end: number of the first draw after them.
        later: bool (sources that are drawn - 1, draws, maybe more): whether the source of a draw comes after the first
            one that is drawn, after the one that follows that, and so on.
        lowest: the first source that is drawn.
        first: number of the first draw of this process; it has every `world`-th from there.
        before: int64 (draws of this process, sources), rows of every source before each of them.
        mine: [(source, number of the row in it)] of this process.
        ends: the source whose rows end with the draw `end`, None if it is only the end of a block.
    """

    begin: Position
    end: int
    later: np.ndarray
    lowest: int
    first: int
    world: int
    before: np.ndarray
    mine: list[tuple[int, int]]
    ends: int | None

    def count(self, drawn: int) -> int:
        """How many of the draws before number `drawn` are this process's."""
        return max(0, -(-(drawn - self.first) // self.world))

    def at(self, drawn: int) -> Position:
        """The position before draw number `drawn`, which is one of these or the first after them."""
        last, known = self.count(drawn) - 1, self.begin.drawn
        counts = self.begin.counts
        if last >= 0:
            counts, known = self.before[last].tolist(), self.first + last * self.world
        since = self.later[:, known - self.begin.drawn : drawn - self.begin.drawn]
        numbers = [drawn - known, *since.sum(axis=1).tolist(), 0]
        counts = list(counts)
        for source in range(len(since) + 1):
            counts[self.lowest + source] += numbers[source] - numbers[source + 1]
        return Position(drawn, tuple(counts), self.begin.left)


class Drawing:
    """Draws of one of `world` processes.

    Args:
        settings: of the sources, with their weights and what happens at their ends.
        rows_of: by source, the number of rows after which it ends; None if that is unknown, or if it never does.
    """

    def __init__(self, settings: list[Source], rows_of: Callable[[int], int | None], seed: int, world: int):
        self.settings, self.rows_of, self.seed, self.world = settings, rows_of, seed, world
        self._bounds = lru_cache(maxsize=2)(self._shares_up_to)
        self._states = lru_cache(maxsize=2)(self._seeded)
        # One generator for all blocks: a new one takes longer than its numbers.
        self._bits, self._lock = np.random.PCG64(0), Lock()
        self._generator, self._uniforms = np.random.Generator(self._bits), np.empty(BLOCK)

    def _shares_up_to(self, left: tuple[bool, ...]) -> tuple[int, np.ndarray]:
        """(the first source that is drawn, where in [0, 1) those after it begin, as a column).

        left: which sources have left the mixture.
        """
        pairs = zip(self.settings, left, strict=True)
        weights = np.array([0.0 if has_left else setting.weight for setting, has_left in pairs])
        drawn = np.flatnonzero(weights)
        ends = np.cumsum(weights / weights.sum())[drawn[0] : drawn[-1]]
        return int(drawn[0]), ends[:, None]

    def _seeded(self, group: int) -> list[dict]:
        return states((self.seed,), np.arange(group * SEEDED, (group + 1) * SEEDED))

    def _later(self, blocks: range, begins: np.ndarray) -> np.ndarray:
        """Whether the uniform number of each draw is at least each of `begins`, bool (begins, draws).

        The numbers are those of `default_rng([seed, block]).random(BLOCK)`, of one block after the other.
        """
        found = np.empty((len(begins), len(blocks) * BLOCK), np.bool_)
        with self._lock:  # threads share the generator, if one still reads ahead while the next begins
            for number, block in enumerate(blocks if len(begins) else ()):
                self._bits.state = self._states(block // SEEDED)[block % SEEDED]
                self._generator.random(out=self._uniforms)
                np.greater_equal(self._uniforms, begins, out=found[:, number * BLOCK : (number + 1) * BLOCK])
        return found

    def draw(self, begin: Position, turn: int) -> Draws:
        """The draws from `begin` to the end of a block, or to the one at which a source ends.

        Args:
            turn: remainder of the numbers of this process's draws by the number of processes.
        Raises:
            Ended: there are no rows.
        """
        if all(begin.left):
            raise Ended("every source")
        block, inside = divmod(begin.drawn, BLOCK)
        blocks = range(block, block + min(MOST_BLOCKS, max(1, self.world // 8)))
        lowest, begins = self._bounds(begin.left)
        later = self._later(blocks, begins)[:, inside:]
        end, ends = later.shape[1], None
        for source, taken in enumerate(begin.counts):
            rows = self.rows_of(source)
            if rows is not None and not begin.left[source] and rows - taken < end:
                places = np.flatnonzero(later.sum(axis=0) == source - lowest)
                fresh = max(0, rows - taken)
                if fresh < len(places) and places[fresh] < end:
                    end, ends = int(places[fresh]), source
        first = (turn - begin.drawn) % self.world
        own = np.arange(first, end, self.world)
        before = np.zeros((len(own), len(self.settings)), np.int64)
        before[:, lowest] = own
        if len(begins) and len(own):
            narrow = np.int16 if self.world < 1 << 15 else np.int64
            counts = np.add.reduceat(later.view(np.int8), own, axis=1, dtype=narrow)[:, :-1]
            before[0, lowest + 1 : lowest + 1 + len(begins)] = later[:, : own[0]].sum(axis=1)
            before[1:, lowest + 1 : lowest + 1 + len(begins)] = counts.T
            np.cumsum(before[:, lowest + 1 :], axis=0, out=before[:, lowest + 1 :])
            before[:, lowest:-1] -= before[:, lowest + 1 :]
        before += begin.counts
        mine = later[:, own].sum(axis=0) + lowest
        numbers = before[np.arange(len(own)), mine].tolist()
        mine = list(zip(mine.tolist(), numbers, strict=True))
        return Draws(begin, begin.drawn + end, later, lowest, begin.drawn + first, self.world, before, mine, ends)

    def after(self, draws: Draws) -> Position:
        """The position at the end of these draws, for those that follow. Raises Ended if the training is over."""
        position = draws.at(draws.end)
        if draws.ends is None:
            return position
        if self.settings[draws.ends].at_end == "stop":
            raise Ended(self.settings[draws.ends].name)
        return position._replace(left=tuple(has or n == draws.ends for n, has in enumerate(position.left)))
