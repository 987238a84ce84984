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
        picture uint8 (O, G, 16, 16): at its place, pixels that are nearest to its body's tone (1), to its detail's (2),
            or not in its colours (0).
    """

    iou: np.ndarray
    shown: np.ndarray
    place: np.ndarray
    identity: np.ndarray
    phase: np.ndarray
    picture: np.ndarray


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
    inside = own[crop]
    shown = inside.sum((1, 2)).reshape(objects, drawn) / truth.drawn("size")
    colours = np.pad(frames, (*sides, (0, 0)))[truth.clip].reshape(objects * drawn, motion.SIDE, -1, 3)[crop]
    identity, phase = _compare(colours, compared[crop], truth)
    found = shown >= FOUND
    place = np.stack([column - truth.margin, row], 1).reshape(objects, drawn, 2)
    picture = (inside * _tone(colours, truth)).reshape(objects, drawn, sprites.SIDE, sprites.SIDE)
    return Reading(iou, shown, place, identity & found, phase & found, picture)


def _tone(colours: np.ndarray, truth: Truth) -> np.ndarray:
    """1 or 2 for pixels of crops (O * G, 16, 16, 3) that are nearest to the body's or the detail's tone."""
    tones = np.array([sprites.tones(hue, shade) for hue, shade in zip(truth.hue, truth.shade, strict=True)])
    tones = tones.astype(np.float32).reshape(-1, 2, 3).repeat(truth.num_frames, 0)  # (O * G, 2, 3)
    body, detail = ((colours - tones[:, None, None, tone]) ** 2 for tone in (0, 1))
    return 1 + (detail.sum(-1) < body.sum(-1)).astype(np.uint8)


_INSIDE = np.arange(sprites.SIDE)


@dataclass(frozen=True)
class _Parts:
    """A value for every picture of the world, in the parts that it is made of.

    A creature is any left half of a head, with any right half and any feet. So a sum over the pixels of its picture has
    three parts, and the least of thousands of such sums is that of the least parts.

    Fields:
        lefts, rights: (..., 12), halves of heads. feet: (..., 6, 8), feet in each phase. spinners: (..., 6, 8).
    """

    lefts: np.ndarray
    rights: np.ndarray
    feet: np.ndarray
    spinners: np.ndarray

    def of(self, sprite: np.ndarray) -> np.ndarray:
        """The value of each sprite (n,) in every phase, (n, 8), where the parts are those of n pictures."""
        row, spinner = np.arange(len(sprite)), np.maximum(sprite - sprites.NUM_CREATURES, 0)
        left, right, feet = sprites.parts(np.minimum(sprite, sprites.NUM_CREATURES - 1))
        creature = (self.lefts[row, left] + self.rights[row, right])[:, None] + self.feet[row, feet]
        return np.where((sprite < sprites.NUM_CREATURES)[:, None], creature, self.spinners[row, spinner])

    def least(self) -> np.ndarray:
        """The least value of all pictures, (...)."""
        creature = self.lefts.min(-1) + self.rights.min(-1) + self.feet.min((-2, -1))
        return np.minimum(creature, self.spinners.min((-2, -1)))


@functools.cache
def _library() -> _Parts:
    """The pictures of the world: each part uint8 (number, ..., its height, its width)."""
    table = sprites.pictures()
    heads, half = len(sprites.HEADS), sprites.SIDE // 2
    creatures = table[: sprites.NUM_CREATURES].reshape(heads, heads, len(sprites.FEET), *table.shape[1:])
    return _Parts(
        creatures[:, 0, 0, 0, :half, :half],
        creatures[0, :, 0, 0, :half, half:],
        creatures[0, 0, :, :, half:],
        table[sprites.NUM_CREATURES :],
    )


def _sums(costs: np.ndarray) -> _Parts:
    """Sums over the pixels of every picture of what each pixel costs.

    Args:
        costs: (n, K, 16, 16): of a pixel that is transparent, of the body, or of the detail (K = 3); or transparent or
            not (K = 2).
    """
    half = sprites.SIDE // 2
    library = _library()

    def summed(costs: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        shown = np.minimum(pictures, costs.shape[1] - 1).reshape(-1, 1, costs[0, 0].size)
        chosen = shown == np.arange(costs.shape[1])[:, None]  # (pictures, K, pixels)
        product = costs.reshape(len(costs), -1) @ chosen.reshape(len(chosen), -1).T.astype(costs.dtype)
        return product.reshape(len(costs), *pictures.shape[:-2])

    return _Parts(
        summed(costs[:, :, :half, :half], library.lefts),
        summed(costs[:, :, :half, half:], library.rights),
        summed(costs[:, :, half:], library.feet),
        summed(costs, library.spinners),
    )


def _place(own: np.ndarray, compared: np.ndarray, true: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and column (n,) where a silhouette fits the object's pixels best; of equal places the true one.

    own, compared: bool (n, 64, W). true: x, y (n, 2).
    """
    # Number of pixels that differ = those of the object + the sum of this over a silhouette.
    weight = np.where(own, -1, compared).astype(np.float32)
    windows = sliding_window_view(weight, (sprites.SIDE, sprites.SIDE), axis=(1, 2))[:, ::step, ::step]
    down, across = windows.shape[1:3]
    differing = np.empty((len(own), down * across), np.float32)
    for start in range(0, len(own), 32):
        some = windows[start : start + 32]
        costs = some.reshape(-1, 1, sprites.SIDE, sprites.SIDE)
        costs = np.concatenate([np.zeros_like(costs), costs], axis=1)  # what is transparent costs nothing
        differing[start : start + 32] = _sums(costs).least().reshape(len(some), -1)
    x, y = (true // step).T
    inside = np.flatnonzero((x >= 0) & (x < across) & (y >= 0) & (y < down))
    differing[inside, (y * across + x)[inside]] -= 0.5  # all others are whole numbers
    best = differing.argmin(1)
    return best // across * step, best % across * step


def _compare(colours: np.ndarray, compared: np.ndarray, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Whether crops (O * G, 16, 16, 3) show the true sprite in the true hue, and the true phase: bool (O, G) each."""
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
    solid = errors(tones).reshape(len(colours), hues, 2, -1)  # (n, hues, body and detail, 256)
    costs = np.concatenate([np.broadcast_to(transparent[:, None, None], solid[:, :, :1].shape), solid], axis=2)
    shape = (-1, 3, sprites.SIDE, sprites.SIDE)
    least = _sums(costs.reshape(shape).astype(np.float64)).least().reshape(len(colours), hues).min(1)
    own_hue = costs[np.arange(len(costs)), truth.hue.repeat(drawn)]  # (n, 3, 256)
    own = _sums(own_hue.reshape(shape).astype(np.float64)).of(truth.sprite.repeat(drawn))  # (n, phases)
    right = own[np.arange(len(own)), truth.drawn("phase").ravel()]
    best = own.min(1)
    return (best <= least).reshape(objects, drawn), (right <= best).reshape(objects, drawn)
