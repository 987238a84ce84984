"""`toyworld:cups`: where is the small object at the end? It may be in sight, behind a post, or under a cup that moved.

The embedded world's counterpart of CATER's localisation task (arXiv 1910.04744). A frame of 64 x 64 pixels is the room
of `toyworld:motion`, 8 x 8 tokens; the 6 x 6 tokens inside are the cells. An object of one token goes to a cell. In
some clips a cup of one token comes, covers it, and may carry it away; other cups travel in the same way without it. A
post or wall, two tokens thick, hides what is behind. All pictures are tokens of toyworld:motion. Everything is integer
arithmetic: the same (rules, split, seed, index) gives the same clip.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from tokenization.toyworld import items, motion, sprites
from tokenization.toyworld.cups_rules import CupsRules
from tokenization.toyworld.world import RuledClips

CELLS = 6  # along a side
STRATA = ("visible", "occluded", "contained", "contained and moved")
VISIBLE, OCCLUDED, CONTAINED, MOVED = range(4)
THICKNESS = 2  # cells that a post or wall hides
TRIES = 24  # plans of a cup from which the first free one is taken
OBJECT = 1  # in masks; cups follow
# Of the halves of heads in `sprites.HEADS`: a box with a keyhole and a hut with a door are cups, the others objects.
BOXES = (2, 6)
OBJECTS = tuple(head for head in range(len(sprites.HEADS)) if head not in BOXES)


@dataclass
class _Scene:
    """What a clip is painted from.

    picture, hue: of the object and the cups, (1 + C,). cells: (T, 1 + C, 2), x and y. axis: 0 for a post, 1 for a
    wall, None for neither; it hides the cells `first` and `first + 1` along this axis. covered: the cell where a cup
    was to come over the object, or None.
    """

    picture: np.ndarray
    hue: np.ndarray
    cells: np.ndarray
    axis: int | None
    first: int
    covered: np.ndarray | None


class CupsWorld(RuledClips):
    """An endless stream of clips of `toyworld:cups`; `clip(i)` returns the i-th one.

    Args:
        split: "train", "validation" or "test"; an object in a hue belongs to one split (see `owned`), and so does the
            shade of all objects and cups.
        rules: the defaults if None.
        seed: another seed gives other clips.
        resolution: side of the frames, a multiple of 64; at 128 every pixel is doubled.
        num_frames: frames per clip. The story is stretched to them; from 12 frames on it always ends as drawn.
    Raises:
        ValueError: an unknown split, another resolution, or no frames.

    Every clip is a dict of C cups and T frames:
        `video` uint8 (T, R, R, 3).
        `masks` uint8 (T, R, R): 0 background, 1 the object, k + 1 the k-th cup, 255 the post or wall.
        `cells` int64 (T,): of the object, x + 6 * y. `cup_cells` int64 (T, C): of the cups.
        `place` int16 (T, 1 + C, 2): x, y of the upper left corner of the object and the cups in pixels.
        `visibility` float32 (T,): share of the object's pixels that is seen, 0 or 1.
        `carrier` int64 (T,): number of the cup over the object, from 1, or 0.
        `last_seen`: cell of the object in the last frame in which it is seen; -1 if it never is.
        `hue`, `picture` int (1 + C,): the identity of the object and the cups.
        labels `cell` (of the object in the last frame), `stratum` (of STRATA, in the last frame), `cups` (C - 1);
            `clip_id` and `index`.
    """

    variant, kind = "cups", CupsRules
    label_names = {
        "cell": [f"{cell % CELLS},{cell // CELLS}" for cell in range(CELLS**2)],
        "stratum": list(STRATA),
        "cups": [str(n + 1) for n in range(len(sprites.HUES) - 1)],
    }

    def clip(self, index: int) -> dict:
        """The clip with this index, as described above."""
        scene = self._draw(index)
        canvas, owner = self._paint(scene)
        return self._describe(index, scene, canvas, owner)

    def _draw(self, index: int) -> _Scene:
        # RandomState, not Generator: its streams are frozen, so clips do not change with numpy's versions.
        rng = np.random.RandomState([self.seed, 16 + items.SPLITS.index(self.split), index])
        rules = self.rules
        ends = np.cumsum(rules.weights)
        stratum = int(np.searchsorted(ends, rng.randint(ends[-1]), side="right"))
        has_post, axis, first = rng.randint(100) < rules.posts, rng.randint(2), 1 + rng.randint(3)
        has_post |= stratum == OCCLUDED
        cells = np.stack([np.arange(CELLS**2) % CELLS, np.arange(CELLS**2) // CELLS], 1)
        behind = (cells[:, axis] >= first) & (cells[:, axis] < first + THICKNESS) & has_post
        count = rng.randint(rules.min_cups, rules.max_cups + 1)
        pairs = owned(self.split)
        picture, hue = pairs[rng.randint(len(pairs))]
        hues = rng.permutation([other for other in range(len(sprites.HUES)) if other != hue])[:count]
        boxes = rng.randint(2, size=count) * len(sprites.HEADS) + np.array(BOXES)[rng.randint(2, size=count)]

        planner = _Planner(rng, self.num_frames, cells[~behind])
        target = planner.one(cells[behind] if stratum == OCCLUDED else cells[~behind])
        thing, covers = planner.walk(target, stratum)
        paths = []
        if stratum in (CONTAINED, MOVED):
            path = planner.cover(target, covers, stratum == MOVED, thing)
            thing = np.where((planner.times >= covers)[:, None], path, thing)
            paths.append(path)
        while len(paths) < count:
            travels, again = rng.randint(100, size=2) < (rules.travels, rules.again)
            paths.append(planner.wander(travels, again, [thing, *paths]))
        # the cup over the object is not always the first one
        order = rng.permutation(count)
        return _Scene(
            np.array([picture, *boxes]),
            np.array([hue, *hues]),
            np.stack([thing, *(paths[number] for number in order)], 1),
            axis if has_post else None,
            first,
            target if stratum in (CONTAINED, MOVED) else None,
        )

    def _paint(self, scene: _Scene) -> tuple[np.ndarray, np.ndarray]:
        """(palette indices (T, 64, 64), masks (T, 64, 64))."""
        frames, side, token = self.num_frames, motion.SIDE, motion.TOKEN
        canvas = np.broadcast_to(motion.bare_floor(side), (frames, side, side)).copy()
        owner = np.zeros_like(canvas)
        flat, owners = canvas.reshape(-1), owner.reshape(-1)
        inside = np.arange(token)
        for number, picture in enumerate(scene.picture):  # cups cover the object
            small = halves()[picture]
            x, y = ((scene.cells[:, number] + 1) * token).T
            pixels = (np.arange(frames) * side * side + y * side + x)[:, None, None] + inside[:, None] * side + inside
            # transparent pixels hide what is behind, as in toyworld:motion, so that no new token is made
            flat[pixels] = np.where(small, small + np.uint8(motion.BODY - 1 + 2 * number), np.uint8(motion.FLOOR))
            owners[pixels] = (small > 0) * np.uint8(OBJECT + number)
        if scene.axis is not None:
            part = slice((scene.first + 1) * token, (scene.first + 1 + THICKNESS) * token)
            part = (slice(None), slice(None), part) if scene.axis == 0 else (slice(None), part)
            canvas[part], owner[part] = _stones(scene.axis), motion.OCCLUDER
        return canvas, owner

    def _describe(self, index: int, scene: _Scene, canvas, owner) -> dict:
        times = self.resolution // motion.SIDE
        shade = sprites.SHADES[self.split][0]
        palette = motion.palette_of(scene.hue, [shade] * len(scene.hue), False)
        numbers = scene.cells[..., 0] + CELLS * scene.cells[..., 1]  # (T, 1 + C)
        cells, cup_cells = numbers[:, 0], numbers[:, 1:]
        over = cup_cells == cells[:, None]
        carrier = np.where(over.any(1), over.argmax(1) + 1, 0)
        seen = (owner == OBJECT).sum((1, 2)) / (halves()[scene.picture[0]] > 0).sum()
        if carrier[-1]:
            is_moved = scene.covered is not None and (scene.cells[-1, 0] != scene.covered).any()
            stratum = MOVED if is_moved else CONTAINED
        else:
            stratum = VISIBLE if seen[-1] else OCCLUDED
        shown = np.flatnonzero(seen)
        return {
            "video": motion.enlarge(palette.take(canvas, axis=0), times),
            "masks": motion.enlarge(owner, times),
            "cells": cells,
            "cup_cells": cup_cells,
            "place": ((scene.cells + 1) * motion.TOKEN * times).astype(np.int16),
            "visibility": seen.astype(np.float32),
            "carrier": carrier,
            "last_seen": int(cells[shown[-1]]) if len(shown) else -1,
            "hue": scene.hue,
            "picture": scene.picture,
            "cell": int(cells[-1]),
            "stratum": stratum,
            "cups": cup_cells.shape[1] - 1,
            "clip_id": f"toyworld/cups/{self.split}/{self.seed}/{index}",
            "index": index,
        }


class _Planner:
    """Draws where the object and the cups are in every frame of a clip.

    A way from cell to cell is as a king's in chess: diagonal until it is straight, a cell each frame.

    frames: of the clip. free: (n, 2) cells that are not behind the post or wall, where everything starts and rests;
    what passes may be behind it.
    """

    def __init__(self, rng: np.random.RandomState, frames: int, free: np.ndarray):
        self.rng, self.frames, self.free = rng, frames, free
        self.times = np.arange(frames)

    def one(self, cells: np.ndarray) -> np.ndarray:
        """One of some cells."""
        return cells[self.rng.randint(len(cells))]

    def walk(self, target: np.ndarray, stratum: int) -> tuple[np.ndarray, int]:
        """(cells (T, 2) of the object on its own, frame in which it is to be hidden).

        It starts in sight at another cell. In half of the clips in which it stays in sight it goes on to a third cell.
        """
        hidden, later = self._moments(1)
        latest = hidden[0] - (stratum != OCCLUDED)  # it rests for a frame before a cup comes
        lengths = abs(self.free - target).max(1)
        begin = self.one(self.free[(lengths > 0) & (lengths <= max(1, latest))])
        length = abs(target - begin).max()
        # in very short clips it is on its way in the first frame
        arrives = latest if stratum == OCCLUDED else self.rng.randint(min(length, latest), latest + 1)
        path = begin + _way(begin, target, arrives - length, self.times)
        end, goes_on = self.one(self.free), self.rng.randint(2)
        if stratum == VISIBLE and goes_on:
            path = path + _way(target, end, later[0], self.times)
        return path, int(hidden[0])

    def cover(self, target: np.ndarray, arrives: int, moves_on: bool, thing: np.ndarray) -> np.ndarray:
        """Cells (T, 2) of a cup that comes to the target in the frame `arrives`, and may move on with the object."""
        others = self.free[(self.free != target).any(1)]
        begin, end = (others[self.rng.randint(len(others), size=TRIES)] for _ in range(2))
        _, later = self._moments(TRIES, arrives)
        goal = np.broadcast_to(target, begin.shape)
        paths = self._two_ways(begin, goal, end if moves_on else goal, np.full(TRIES, arrives), later)
        early = self.times < arrives
        return paths[np.argmin((paths == thing).all(-1)[:, early].any(-1))]

    def wander(self, travels: bool, again: bool, others: list[np.ndarray]) -> np.ndarray:
        """Cells (T, 2) of a cup that is never where the object or another cup is: others, (T, 2) each.

        Where no drawn way is free it stays at a free cell.
        """
        begin, middle, end = (self.free[self.rng.randint(len(self.free), size=TRIES)] for _ in range(3))
        arrives, later = self._moments(TRIES)
        middle = middle if travels else begin
        paths = self._two_ways(begin, middle, end if again else middle, arrives, later)
        still = np.repeat(self.free[self.rng.permutation(len(self.free)), None], self.frames, 1)
        paths = np.concatenate([paths, still])
        meets = (paths[:, None] == np.stack(others)).all(-1).any((1, 2))
        return paths[np.argmin(meets)]

    def _moments(self, count: int, arrives: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(count,) frames in which a first way ends, between a third and half of the clip, and a second one begins."""
        early, late = self.frames // 3, self.frames // 2
        first = self.rng.randint(early, late + 1, size=count) if arrives is None else np.full(count, arrives)
        # early enough for the longest way to end before the clip does, if that is possible
        latest = np.maximum(first + 1, self.frames - CELLS)
        return first, first + 1 + self.rng.randint(0, latest - first, size=count)

    def _two_ways(self, begin, middle, end, arrives, later) -> np.ndarray:
        """(n, T, 2) from (n, 2) cells: at `middle` in the frame `arrives`, on its way to `end` after `later`, (n,)."""
        length = abs(middle - begin).max(-1)
        first = _way(begin, middle, arrives - length, self.times)
        return begin[:, None] + first + _way(middle, end, later, self.times)


def _way(begin: np.ndarray, end: np.ndarray, since: np.ndarray | int, times: np.ndarray) -> np.ndarray:
    """Displacements (..., T, 2) from cells `begin` to `end`, (..., 2), by one who stands still until frame `since`."""
    way = (end - begin)[..., None, :]
    gone = np.maximum(times - np.asarray(since)[..., None], 0)[..., None]
    return np.sign(way) * np.minimum(gone, abs(way))


@functools.cache
def halves() -> np.ndarray:
    """The pictures of objects and cups: the left halves of heads, then the right ones: uint8 (24, 8, 8), as sprites."""
    table, heads, side = sprites.pictures(), len(sprites.HEADS), motion.TOKEN
    left = table[np.arange(heads) * heads * len(sprites.FEET), 0, :side, :side]
    right = table[np.arange(heads) * len(sprites.FEET), 0, :side, side:]
    return np.concatenate([left, right])


@functools.cache
def owned(split: str) -> np.ndarray:
    """The (picture, hue) pairs of the objects of a split: int64 (N, 2).

    A fifth of the heads is kept for validation and one for test, in all hues and both halves; of the others each split
    has its own combinations with hues. So every object of the test split is new in its hue, and most are new in all.
    """
    number = items.SPLITS.index(split)
    pairs = []
    for place, head in enumerate(OBJECTS):
        for half in range(2):
            for hue in range(len(sprites.HUES)):
                kept_for = {3: 1, 4: 2}.get(place % 5)
                by_hue = {0: 1, 1: 2}.get((place + 2 * half + hue) % len(sprites.HUES), 0)
                if number == (by_hue if kept_for is None else kept_for):
                    pairs.append((half * len(sprites.HEADS) + head, hue))
    return np.array(pairs)


@functools.cache
def _stones(axis: int) -> np.ndarray:
    """A post (64, 16) or a wall (16, 64), palette indices: the outer stones of those of toyworld:motion."""
    whole, token = motion.stones(1 + axis, motion.SIDE), motion.TOKEN
    kept = np.r_[:token, whole.shape[1 - axis] - token : whole.shape[1 - axis]]
    return whole[:, kept] if axis == 0 else whole[kept]
