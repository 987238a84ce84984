"""`toyworld:photos`: endless pictures without labels, cut from the world's photographs and film in all sizes.

A few photographs hold many small scenes: a window of an eighth of the side shows a face or a roof. Half of the windows
are mirrored, and half have their colour channels permuted and their contrast changed, since seven photographs have
little variety.
"""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

from tokenization.toyworld import items

SIDE = 384  # shorter side of the photographs that windows are cut from; about that of the smallest one
FILM_SIDE = 256
SMALLEST_WINDOW = 40  # pixels
CHANNELS = tuple(itertools.permutations(range(3)))


def photograph(split: str, seed: int, index: int, resolution: int) -> np.ndarray:
    """The picture with this index, uint8 (resolution, resolution, 3).

    The same arguments (and version of PIL) give the same picture.
    """
    rng = np.random.RandomState([seed, len(items.SPLITS) + items.SPLITS.index(split), index])
    if split == "train" and rng.randint(4) == 0:
        film = items.film(FILM_SIDE)
        picture = film[rng.randint(len(film))]
    else:
        pictures = items.photos(split, SIDE)
        picture = pictures[rng.randint(len(pictures))]
    height, width = picture.shape[:2]
    # log-uniform: as many windows between 40 and 80 pixels as between 160 and 320
    side = round(SMALLEST_WINDOW * (min(height, width) / SMALLEST_WINDOW) ** rng.random_sample())
    top, left = rng.randint(height - side + 1), rng.randint(width - side + 1)
    window = picture[top : top + side, left : left + side]
    if rng.randint(2):
        window = window[:, ::-1]
    if rng.randint(2):
        window = window[..., CHANNELS[rng.randint(len(CHANNELS))]]
        level = window.mean()
        changed = level + (window - level) * rng.uniform(0.6, 1.4) + rng.uniform(-40, 40)
        window = changed.clip(0, 255).astype(np.uint8)
    size = (resolution, resolution)
    return np.asarray(Image.fromarray(np.ascontiguousarray(window)).resize(size, Image.Resampling.BICUBIC))
