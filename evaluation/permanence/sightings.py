"""Objects of `toyworld:motion` that hide and come back, as the tokens of their last sighting and of their return.

Tokens are numbered from 0 over the frames of a clip, frame by frame in raster order; in a row of ids the start token
comes before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.continuations.truth import HIDDEN, RETURNED
from tokenization.toyworld import MotionWorld

NEAR = 1.0  # tokens by which the distance of a matched control may differ


@dataclass(frozen=True)
class Sighting:
    """An object that was seen, hid, and is back.

    Fields:
        index: of the clip. number: of the object in its masks, from 1.
        last: the last frame in which it was seen before it hid (RETURNED of its pixels; HIDDEN or less is hidden).
        back: the first frame in which it is seen again.
        video: uint8 (T, R, R, 3), frames up to and with `back`. never: the same with nothing that hides the object.
        queries: tokens of frame `back` that show it. keys: tokens of frame `last` that show it. seen: tokens of all
            frames up to `last` that show it.
        matched: sets of as many tokens of frame `last` as `keys`, of the same shape, which show none of the object and
            are as far from the queries as `keys` (NEAR).
        matched_seen: as many tokens as `seen`, or fewer where a frame has no place, matched in the same way.
    """

    index: int
    number: int
    last: int
    back: int
    video: np.ndarray
    never: np.ndarray
    queries: np.ndarray
    keys: np.ndarray
    seen: np.ndarray
    matched: list[np.ndarray]
    matched_seen: np.ndarray


def find_sightings(
    world: MotionWorld, count: int, grid: tuple[int, int], most: int, watch: Callable = iter
) -> list[Sighting]:
    """The first `count` sightings of a world, at most one of each clip, so that they are independent.

    grid: (h, w) tokens of a frame. most: clips to look through. watch: wraps the indices, such as tqdm.
    Raises ValueError if so many clips have fewer sightings.
    """
    found: list[Sighting] = []
    for index in watch(range(most)):
        if (sighting := _first(world, index, grid)) is not None:
            found.append(sighting)
        if len(found) == count:
            return found
    raise ValueError(
        f"{most:,} clips of {world.num_frames} frames have {len(found)} objects that hide and come back, but {count} "
        "were asked for; lower --num_occlusions."
    )


def span(visibility: np.ndarray) -> tuple[int, int] | None:
    """(last, back) of one object from the share of it that is seen in every frame (T,); None if it does not return."""
    hidden = np.flatnonzero(visibility < HIDDEN)
    for first in hidden:
        before = np.flatnonzero(visibility[:first] >= RETURNED)
        after = np.flatnonzero(visibility[first:] >= RETURNED)
        if len(before) and len(after):
            return int(before[-1]), int(first + after[0])
    return None


def _first(world: MotionWorld, index: int, grid: tuple[int, int]) -> Sighting | None:
    clip = world.clip(index)
    for number in range(1, len(clip["sprite"]) + 1):
        if (found := span(clip["visibility"][:, number - 1])) is None:
            continue
        last, back = found
        shown = tokens_of(clip["masks"][: back + 1] == number, grid)  # (back + 1, h, w)
        queries, keys = np.argwhere(shown[back]), np.argwhere(shown[last])
        per_frame = [_matched(shown[frame], queries, np.argwhere(shown[frame])) for frame in range(last + 1)]
        if not per_frame[last]:
            continue
        never, _ = world.uncovered(index, number)
        numbers = np.arange(shown.size).reshape(shown.shape)
        generator = np.random.RandomState(index)
        chosen = [each[generator.randint(len(each))] if each else np.zeros((0, 2), int) for each in per_frame]
        return Sighting(
            index=index,
            number=number,
            last=last,
            back=back,
            video=clip["video"][: back + 1],
            never=never[: back + 1],
            queries=numbers[back][tuple(queries.T)],
            keys=numbers[last][tuple(keys.T)],
            seen=numbers[: last + 1][shown[: last + 1]],
            matched=[numbers[last][tuple(places.T)] for places in per_frame[last]],
            matched_seen=np.concatenate([numbers[f][tuple(places.T)] for f, places in enumerate(chosen)]),
        )
    return None


def tokens_of(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Which tokens show some of a mask: bool (T, R, R) -> (T, h, w)."""
    frames, (h, w) = len(mask), grid
    return mask.reshape(frames, h, mask.shape[1] // h, w, mask.shape[2] // w).any((2, 4))


def _matched(shown: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """`keys` (n, 2), shifted to every other place of the frame that is as far from the queries' centre; see Sighting.

    shown: bool (h, w), tokens that show the object.
    """
    if not len(keys):
        return []
    size, centre = np.array(shown.shape), queries.mean(0)
    distance = np.hypot(*(keys.mean(0) - centre))
    low, high = -keys.min(0), size - 1 - keys.max(0)
    found = []
    for down in range(low[0], high[0] + 1):
        for across in range(low[1], high[1] + 1):
            moved = keys + np.array([down, across])
            near = abs(np.hypot(*(moved.mean(0) - centre)) - distance) <= NEAR
            if near and not shown[tuple(moved.T)].any():
                found.append(moved)
    return found
