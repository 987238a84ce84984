"""The objects of `toyworld:turntable`, which of them belongs to which split, and their renderer.

An object has three boxes: a body, a head on one end of it and an arm on one side. A box has one colour in three flat
shades: its top is bright, a side that faces left is lit, one that faces right is dark. So an unseen side of a box can
be known from the seen ones.
"""

from __future__ import annotations

import functools

import numpy as np

from tokenization.toyworld.items import SPLITS
from tokenization.toyworld.motion import COLOURS, FLOOR
from tokenization.toyworld.sprites import HUES, tones
from tokenization.toyworld.world import SIDE

CIRCLE = 720  # angles count half degrees
PARTS = ("body", "head", "arm")
SHADES = 3  # top, lit side, dark side
# Sizes along x (the long axis of the body), y and z (up). Heights are whole tokens, so that few tokens show edges.
BODIES = ((32, 12, 8), (28, 16, 16), (36, 12, 16), (24, 12, 24), (32, 18, 16), (40, 8, 8))
HEADS = ((10, 10, 8), (8, 12, 16), (12, 8, 16), (16, 6, 8), (6, 6, 16), (12, 12, 8))
# Their y is the length away from the body; the fourth number is the distance from the end that has no head.
ARMS = ((8, 12, 8, 0), (12, 8, 8, 0), (6, 14, 8, 4), (10, 10, 8, 4), (16, 6, 8, 0), (8, 8, 8, 8))
REACH = 30  # no part is farther from the axis, so that every view is inside the frame


@functools.cache
def owned(split: str) -> np.ndarray:
    """The (body, head, arm) of a split, int64 (N, 3). A sixth is kept for validation and one for test.

    Every pair of parts is in train, so an object held out of training is new only as a whole.
    """
    number = SPLITS.index(split)
    every = np.stack(np.meshgrid(range(len(BODIES)), range(len(HEADS)), range(len(ARMS)), indexing="ij"), -1)
    every = every.reshape(-1, 3)
    rest = every.sum(1) % 6
    return every[np.where(rest == 4, 1, np.where(rest == 5, 2, 0)) == number]


def boxes(shape, mirrored: bool) -> np.ndarray:
    """The boxes of a (body, head, arm): int64 (3, 2, 3), the lowest and highest x, y, z of each.

    mirrored: the arm is on the other side.
    """
    body, head, (across, away, tall, since) = (kind[k] for kind, k in zip((BODIES, HEADS, ARMS), shape, strict=True))
    half, deep = body[0] // 2, body[1] // 2
    found = np.array([
        [[-half, -deep, 0], [half, deep, body[2]]],
        [[half - head[0], -head[1] // 2, body[2]], [half, head[1] // 2, body[2] + head[2]]],
        [[since - half, deep, 0], [since - half + across, deep + away, tall]],
    ])  # fmt: skip
    if mirrored:
        found[:, :, 1] = -found[:, ::-1, 1]
    return found


@functools.cache
def _cosines() -> np.ndarray:
    """Cosines of all half degrees, rounded to 1/16384, so that all machines have the same; none is zero."""
    whole = np.rint(np.cos(np.arange(CIRCLE) * (2 * np.pi / CIRCLE)) * 2**14)
    return (np.where(whole == 0, 1 / 64, whole) / 2**14).astype(np.float32)  # a ray is never parallel to a face


def cosine(angles) -> np.ndarray:
    return _cosines()[np.asarray(angles) % CIRCLE]


def sine(angles) -> np.ndarray:
    return _cosines()[(np.asarray(angles) - CIRCLE // 4) % CIRCLE]


def render(solids: np.ndarray, angles, elevation: int) -> np.ndarray:
    """Views of boxes from parallel rays, as palette indices: uint8 (A, 64, 64).

    Args:
        solids: (N, 2, 3), as from `boxes`.
        angles: (A,) half degrees by which the object is turned counterclockwise, seen from above.
        elevation: degrees by which the camera looks down.
    Returns:
        0 where there is nothing, else 1 + SHADES * part + shade (0 top, 1 lit side, 2 dark side).

    The box that a ray enters first is seen, and the last of its slabs (x, y, z) that the ray enters is the face. Only
    additions, products, and comparisons of float32 are used, each rounded on its own, so machines agree.
    """
    angles = np.atleast_1d(angles)
    cos, sin = (turn(angles)[:, None, None] for turn in (cosine, sine))  # (A, 1, 1)
    ahead, down = (turn(2 * elevation).astype(np.float32) for turn in (cosine, sine))
    x = np.arange(SIDE, dtype=np.float32) - np.float32((SIDE - 1) / 2)  # (W,)
    # The axis stands where object and ground are in the middle: lower, the less the camera looks down.
    y = np.float32(56 - elevation // 3 - 0.5) - np.arange(SIDE, dtype=np.float32)[:, None]  # (H, 1), up
    # A ray is x right + y up + t along, in coordinates of the object: right = (cos, -sin, 0), and so on.
    along = (sin * ahead, cos * ahead, -down)
    start = (x * cos, y * down * sin), (y * down * cos, -x * sin), (y * ahead, np.float32(0))
    left = (cos * along[0] > 0, -sin * along[1] > 0)  # whether the seen face of x, of y looks left
    sides = [np.where(each, np.uint8(1), np.uint8(2)) for each in left]
    shape = (len(angles), SIDE, SIDE)
    nearest, seen = np.full(shape, np.inf, np.float32), np.zeros(shape, np.uint8)
    for part, (low, high) in enumerate(np.asarray(solids)):
        enters, leaves = [], []
        for axis in range(3):
            pace = np.float32(1) / along[axis]
            first = np.where(pace > 0, np.float32(low[axis]), np.float32(high[axis]))
            enter = (first - start[axis][0]) * pace - start[axis][1] * pace
            enters.append(enter)
            leaves.append(enter + np.float32(high[axis] - low[axis]) * np.abs(pace))
        by_x = enters[0] > enters[1]
        enter = np.maximum(enters[0], enters[1])
        by_top = enters[2] > enter
        enter = np.maximum(enter, enters[2])
        leave = np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])
        hit = (enter < leave) & (enter < nearest)
        shade = np.where(by_top, np.uint8(0), np.where(by_x, *sides))
        np.copyto(nearest, enter, where=hit)
        np.copyto(seen, shade + np.uint8(1 + SHADES * part), where=hit)
    return seen


def palette_of(hues) -> np.ndarray:
    """Palette index -> RGB, uint8 (10, 3), of an object whose parts have these hues: those of `toyworld:motion`."""
    found = [COLOURS[FLOOR]]
    for hue in hues:
        body, bright = tones(hue, 0).astype(int)
        found += [bright, body, body * 9 // 16]
    return np.array(found).astype(np.uint8)


NUM_HUES = len(HUES)
