"""Objects read from drawn frames: masks, place, identity and phase, by comparing pixels with the world's pictures."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from evaluation.continuations.truth import Truth
from tokenization.toyworld import motion, sprites

FOUND = 0.25  # share of the object's pixels that must be drawn for it to be found
CHUNK = 8  # clips read at a time; more is slower on a CPU, whose caches then overflow


@dataclass(frozen=True)
class Reading:
    """What is read for every object and drawn frame.

    Fields:
        iou (O, G): intersection over union of the object's pixels with its true visible mask; nan where both are empty.
        shown (O, G): pixels in the object's colours at its place, as a share of those of its true picture.
        place int (O, G, 2): x, y of its upper left corner.
        identity, phase bool (O, G): sprite and hue are the true ones; the picture is that of the true phase.
    """

    iou: np.ndarray
    shown: np.ndarray
    place: np.ndarray
    identity: np.ndarray
    phase: np.ndarray


def read(frames: np.ndarray, truth: Truth) -> Reading:
    """Find the objects of the clips in drawn frames.

    Every pixel is given to the nearest colour of the clip's palette. An object's place is the one, of all places on the
    grid of `truth.step`, where some silhouette of the library differs least from the pixels in its colours. There the
    picture is compared with those of the whole library (all sprites of all splits, in all hues): its identity is kept
    if no other has a smaller squared error, its phase if no other picture of its sprite has. So places and pictures
    that cannot be told apart count as equal. Pixels that show something else, or that something nearer hides in truth,
    are left out; those in the object's colours never are. If less than FOUND of its pixels are there, the object is not
    found, and neither its identity nor its phase is kept.

    Args:
        frames: uint8 (C, G, R, R, 3), R a multiple of 64.
    """
    frames = at_world_size(frames)
    parts = []
    for start in range(0, len(frames), CHUNK):
        part = truth.part(start, start + CHUNK)
        parts.append(_read(frames[start : start + CHUNK], part))
    return Reading(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Reading)))


def at_world_size(frames: np.ndarray) -> np.ndarray:
    """uint8 (C, G, R, R, 3) -> (C, G, 64, 64, 3), by the mean of square blocks."""
    times = frames.shape[2] // motion.SIDE
    if times == 1:
        return frames
    blocks = frames.reshape(*frames.shape[:2], motion.SIDE, times, motion.SIDE, times, 3)
    return blocks.mean((3, 5)).round().astype(np.uint8)


def segment(frames: np.ndarray, palette: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What every pixel shows, as in the world's masks, by the nearest colour of the clip's palette.

    uint8 (C, G, 64, 64, 3), (C, K, 3) and (C, K) -> uint8 (C, G, 64, 64).
    """
    pixels = frames.reshape(len(frames), -1, 3).swapaxes(1, 2).astype(np.float32)
    colours = palette.astype(np.float32)
    distances = (colours**2).sum(2)[:, :, None] - 2 * (colours @ pixels)  # (C, K, pixels), less |pixel|^2
    nearest, found = distances[:, 0].copy(), np.repeat(labels[:, :1], pixels.shape[2], axis=1)
    for k in range(1, palette.shape[1]):  # faster than argmin over an axis that is not the last
        closer = distances[:, k] < nearest
        np.copyto(found, labels[:, k : k + 1], where=closer)
        np.minimum(nearest, distances[:, k], out=nearest)
    return found.reshape(frames.shape[:-1])


def _read(frames: np.ndarray, truth: Truth) -> Reading:
    objects, drawn = len(truth.clip), truth.num_frames
    seen = segment(frames, truth.palette, truth.labels)[truth.clip]  # (O, G, 64, 64)
    number = truth.number[:, None, None, None]
    own = seen == number
    mask = truth.drawn("masks")[truth.clip] == number
    union = (own | mask).sum((2, 3))
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, (own & mask).sum((2, 3)) / union, np.nan)

    # Pixels that can be compared: not another object or the occluder, nor hidden in truth.
    compared = own | ((seen == 0) & ~truth.cover)
    sides = ((0, 0), (0, 0), (0, 0), (truth.margin, truth.margin))
    own, compared = (np.pad(each, sides).reshape(objects * drawn, motion.SIDE, -1) for each in (own, compared))
    true = truth.drawn("place").reshape(-1, 2) + np.array([truth.margin, 0])
    row, column = _place(own, compared, true, truth.step)
    crop = (np.arange(len(own))[:, None, None], row[:, None, None] + _INSIDE[:, None], column[:, None, None] + _INSIDE)
    shown = own[crop].sum((1, 2)).reshape(objects, drawn) / truth.drawn("size")
    colours = np.pad(frames, (*sides, (0, 0)))[truth.clip].reshape(objects * drawn, motion.SIDE, -1, 3)[crop]
    identity, phase = _compare(colours, compared[crop], truth)
    found = shown >= FOUND
    place = np.stack([column - truth.margin, row], 1).reshape(objects, drawn, 2)
    return Reading(iou, shown, place, identity & found, phase & found)


_INSIDE = np.arange(sprites.SIDE)


@functools.cache
def _library() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pictures of the world.

    Returns:
        pictures uint8 (U, 256); which of them is shown, int (sprites, phases); silhouettes float32 (256, S).
    """
    table = sprites.pictures()
    pictures, which = np.unique(table.reshape(-1, sprites.SIDE**2), axis=0, return_inverse=True)
    silhouettes = np.unique(pictures > 0, axis=0).T.astype(np.float32)
    return pictures, which.reshape(table.shape[:2]), silhouettes


def _place(own: np.ndarray, compared: np.ndarray, true: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and column (n,) where a silhouette fits the object's pixels best; of equal places the true one.

    own, compared: bool (n, 64, W). true: x, y (n, 2).
    """
    _, _, silhouettes = _library()
    # Number of pixels that differ = those of the object + the sum of this over a silhouette.
    weight = np.where(own, -1, compared).astype(np.float32)
    windows = sliding_window_view(weight, (sprites.SIDE, sprites.SIDE), axis=(1, 2))[:, ::step, ::step]
    down, across = windows.shape[1:3]
    differing = np.empty((len(own), down * across), np.float32)
    for start in range(0, len(own), 32):
        some = windows[start : start + 32]
        product = some.reshape(-1, sprites.SIDE**2) @ silhouettes
        differing[start : start + 32] = product.min(1).reshape(len(some), -1)
    x, y = (true // step).T
    inside = np.flatnonzero((x >= 0) & (x < across) & (y >= 0) & (y < down))
    differing[inside, (y * across + x)[inside]] -= 0.5  # all others are whole numbers
    best = differing.argmin(1)
    return best // across * step, best % across * step


def _compare(colours: np.ndarray, compared: np.ndarray, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Whether crops (O * G, 16, 16, 3) show the true sprite in the true hue, and the true phase: bool (O, G) each."""
    pictures, which, _ = _library()
    objects, drawn, hues = len(truth.clip), truth.num_frames, len(sprites.HUES)
    tones = np.array([[sprites.tones(hue, shade) for hue in range(hues)] for shade in truth.shade])  # (O, hues, 2, 3)
    tones = tones.reshape(objects, 1, 2 * hues, 3).repeat(drawn, 1).reshape(objects * drawn, 2 * hues, 3)
    floor = (truth.labels == 0)[truth.clip].repeat(drawn, 0)  # (O * G, K)
    behind = truth.palette[truth.clip].repeat(drawn, 0)

    def errors(palette: np.ndarray) -> np.ndarray:
        """Squared errors (n, K, 256) of the compared pixels against the colours (n, K, 3): integers, so exact."""
        pixels, palette = colours.reshape(len(colours), 1, -1, 3).astype(np.float32), palette.astype(np.float32)
        squares = sum((pixels[..., c] - palette[:, :, None, c]) ** 2 for c in range(3))
        return squares * compared.reshape(len(compared), 1, -1)

    transparent = np.where(floor[:, :, None], errors(behind), np.inf).min(1)  # (n, 256)
    solid = errors(tones).reshape(-1, 2 * sprites.SIDE**2)  # (n * hues, body and detail)
    shape = np.concatenate([pictures == 1, pictures == 2], axis=1).T
    total = solid.astype(np.float64) @ shape.astype(np.float64)  # (n * hues, U)
    total = total.reshape(len(colours), hues, -1) + (transparent.astype(np.float64) @ (pictures == 0).T)[:, None]
    hue = total[np.arange(len(total)), truth.hue.repeat(drawn)]  # (n, U) in the true hue
    own = which[truth.sprite].repeat(drawn, 0)  # (n, phases)
    best = np.take_along_axis(hue, own, 1).min(1)
    right = hue[np.arange(len(hue)), which[truth.sprite[:, None], truth.drawn("phase")].ravel()]
    return (best <= total.min((1, 2))).reshape(objects, drawn), (right <= best).reshape(objects, drawn)
