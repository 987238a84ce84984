"""Counts of n-grams in grids of codes, in bounded memory: how many occur how often, and when each occurs first.

n codes of a codebook are packed into one unsigned integer of 64 bits. All statistics follow from the number of n-grams
that occur once, twice, ..., and these numbers add up over parts of the n-grams. So those that begin with the same codes
are counted together, some codes at a time: at most AT_ONCE n-grams (or those of a single first code, if it has more)
are in memory at about 80 bytes each, next to the codes at 2 bytes each, however many n-grams are distinct.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Neighbours that form an n-gram. None crosses the border of an image, or of a clip; only raster crosses line ends.
ORDERS = ("raster", "horizontal", "vertical", "time")
AT_ONCE = 1 << 22  # n-grams that are sorted together
BLOCK = 1 << 18  # codes that are widened to 64 bits at a time


@dataclass(frozen=True)
class Spectrum:
    """`kinds[i]` different n-grams occur `times[i]` times each; `times` (int64) is increasing."""

    times: np.ndarray
    kinds: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Spectrum:
        """Of the counts of all n-grams, each at least 1."""
        return cls(*np.unique(counts.astype(np.int64), return_counts=True))

    def __add__(self, other: Spectrum) -> Spectrum:
        """Of two sets of n-grams that have none in common."""
        times, where = np.unique(np.concatenate([self.times, other.times]), return_inverse=True)
        return Spectrum(times, np.bincount(where, np.concatenate([self.kinds, other.kinds])).astype(np.int64))

    @property
    def total(self) -> int:
        return int(self.times @ self.kinds)

    @property
    def distinct(self) -> int:
        return int(self.kinds.sum())

    def kinds_seen(self, times: int) -> int:
        """The number of different n-grams that occur exactly so many times."""
        return int(self.kinds[self.times == times].sum())


@dataclass(frozen=True)
class Counts:
    """The n-grams of an order. N of them stand in F frames.

    Fields:
        spectrum: of the n-grams. prefixes: of their first n - 1 codes, counted over the same N places.
        new: (F,) number of n-grams that occur first in each frame; along time, the frame of an n-gram is its last one.
        places: (F,) number of n-grams in each frame.
    """

    spectrum: Spectrum
    prefixes: Spectrum
    new: np.ndarray
    places: np.ndarray

    def growth(self, frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(distinct, total) number of n-grams in the first so many frames, each in the shape of `frames`."""
        ends = np.asarray(frames) - 1
        return self.new.cumsum()[ends], self.places.cumsum()[ends]


def bits_of(num_codes: int) -> int:
    """Bits that hold any code of a codebook."""
    return max(1, (num_codes - 1).bit_length())


def longest(order: str, shape: tuple[int, int, int]) -> int:
    """The codes of the longest run of an order in clips of `shape` (T, h, w)."""
    frames, h, w = shape
    return {"raster": h * w, "horizontal": w, "vertical": h, "time": frames}[order]


def count(codes: np.ndarray, num_codes: int, order: str, n: int, at_once: int = AT_ONCE) -> Counts:
    """The n-grams of an order.

    Args:
        codes: unsigned integers (N, T, h, w), below `num_codes`; images have T = 1.
        order: of ORDERS. raster: n consecutive codes of a frame, line after line, so that runs cross line ends;
            horizontal: inside a line; vertical: inside a column; time: at one place in n consecutive frames of a clip.
        n: at most `longest`, and n times the bits of a code at most 64.
        at_once: n-grams sorted together; it limits the memory and does not change the counts.
    """
    clips, frames, h, w = codes.shape
    bits, axis = bits_of(num_codes), {"raster": 2, "horizontal": 3, "vertical": 2, "time": 1}[order]
    reach = longest(order, codes.shape[1:])
    if not 1 <= n <= reach or n * bits > 64:
        raise ValueError(
            f"n is {n}; an n-gram of the order {order} has 1 to {reach} codes here, and at most 64 bits ({bits} each)."
        )
    lines = codes.reshape(clips, frames, h * w) if order == "raster" else codes
    ends_at = n - 1 if order == "time" else 0  # the first frame of a clip that has n-grams
    per_frame = h * w if order == "time" else h * w // reach * (reach - n + 1)
    places = np.where(np.arange(clips * frames) % frames >= ends_at, per_frame, 0)
    spectrum = prefixes = Spectrum(np.empty(0, np.int64), np.empty(0, np.int64))
    new = np.zeros(clips * frames, np.int64)
    for low, high in _first_codes(codes, num_codes, at_once):
        found_keys, found_frames = [], []
        for start, keys in _keys(lines, axis, n, bits):
            where = np.flatnonzero((keys >> (bits * (n - 1)) >= low) & (keys >> (bits * (n - 1)) < high))
            clip, frame = np.divmod(where // per_frame, frames - ends_at)
            found_keys.append(keys[where])
            found_frames.append(((start + clip) * frames + frame + ends_at).astype(np.uint32))
        keys, at = np.concatenate(found_keys), np.concatenate(found_frames)
        del found_keys, found_frames
        if not len(keys):
            continue
        distinct, first, times = np.unique(keys, return_index=True, return_counts=True)
        new += np.bincount(at[first], minlength=len(new))
        prefix = distinct >> bits
        begins = np.flatnonzero(np.concatenate([[True], prefix[1:] != prefix[:-1]]))
        spectrum += Spectrum.of(times)
        prefixes += Spectrum.of(np.add.reduceat(times, begins))
    if n == 1:  # one empty prefix, which the passes would count as several
        prefixes = Spectrum(np.array([spectrum.total]), np.array([1]))
    return Counts(spectrum, prefixes, new, places)


def code_counts(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """How often each code occurs: (num_codes,) int64."""
    flat, found = codes.reshape(-1), np.zeros(num_codes, np.int64)
    for start in range(0, len(flat), BLOCK):
        found += np.bincount(flat[start : start + BLOCK], minlength=num_codes)
    return found


def _first_codes(codes: np.ndarray, num_codes: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Ranges of codes, low <= code < high, that each occur at most `at_once` times together, or are a single code."""
    low, held = 0, 0
    for code, times in enumerate(code_counts(codes, num_codes).tolist()):
        if held and held + times > at_once:
            yield low, code
            low, held = code, 0
        held += times
    yield low, num_codes


def _keys(lines: np.ndarray, axis: int, n: int, bits: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first clip, packed n-grams along an axis as uint64, flattened) of some clips at a time."""
    step = max(1, BLOCK // max(1, lines[0].size))
    for start in range(0, len(lines), step):
        block = np.moveaxis(lines[start : start + step], axis, 0)
        keys = np.zeros((block.shape[0] - n + 1, *block.shape[1:]), np.uint64)
        for k in range(n):
            keys = (keys << bits) | block[k : block.shape[0] - n + 1 + k].astype(np.uint64)
        yield start, np.moveaxis(keys, 0, axis).reshape(-1)
