"""Augmentation of clips and images: random crops, flips, RandAugment, mixup and cutmix.

All frames of a clip are treated alike, so that motion is preserved. All randomness is drawn from the generator that is
passed in. Only PIL and numpy are used, since torchvision is optional. Mixing works on pixels, before they are
tokenized, because ids cannot be interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

RATIOS = (3 / 4, 4 / 3)  # of a random crop, as in Inception and its successors
FILL = (128, 128, 128)  # colour of the corners of a rotated picture
AFFINE = Image.Transform.AFFINE


def _affine(picture: Image.Image, a: float = 1, b: float = 0, c: float = 0, d: float = 0, e: float = 1, f: float = 0):
    return picture.transform(picture.size, AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC, fillcolor=FILL)


def _enhance(kind) -> Callable:
    return lambda picture, level: kind(picture).enhance(1 + 0.9 * level)


# RandAugment's operations (Cubuk et al. 2019, arXiv 1909.13719): (picture, level in -1..1) -> picture. The largest
# levels follow AutoAugment, except for shifts, which are a share of the side.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda picture, level: picture,
    "autocontrast": lambda picture, level: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level: ImageOps.equalize(picture),
    "rotate": lambda picture, level: picture.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=FILL),
    "solarize": lambda picture, level: ImageOps.solarize(picture, round(256 * (1 - abs(level)))),
    "posterize": lambda picture, level: ImageOps.posterize(picture, 8 - round(4 * abs(level))),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda picture, level: _affine(picture, b=0.3 * level),
    "shear_y": lambda picture, level: _affine(picture, d=0.3 * level),
    "translate_x": lambda picture, level: _affine(picture, c=0.3 * level * picture.width),
    "translate_y": lambda picture, level: _affine(picture, f=0.3 * level * picture.height),
}


def crop_box(side: int, smallest: float, generator: np.random.Generator) -> tuple[float, float, float, float]:
    """A random crop (left, top, right, bottom) of a square, with `smallest` to 1 of its area and a ratio in RATIOS.

    It is the whole square if ten draws did not fit into it.
    """
    for _ in range(10):
        area = side * side * generator.uniform(smallest, 1)
        ratio = math.exp(generator.uniform(*map(math.log, RATIOS)))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= side and height <= side:
            left, top = generator.uniform(0, side - width), generator.uniform(0, side - height)
            return left, top, left + width, top + height
    return 0, 0, side, side


class Augment:
    """Frames uint8 (T, S, S, 3) -> (T, R, R, 3): a random resized crop, a flip and random operations, in this order.

    Args:
        resolution: R.
        smallest_crop: smallest area of a crop, as a fraction; None resizes without cropping.
        flip: mirror half of the clips, left to right. Turn it off if labels depend on left and right.
        operations: number of OPERATIONS, drawn with repetition; 0 for none.
        magnitude: strength of the operations, 0 to 10 (RandAugment's scale).
    """

    def __init__(self, resolution: int, smallest_crop: float | None, flip: bool, operations: int, magnitude: float):
        self.resolution, self.smallest_crop, self.flip = resolution, smallest_crop, flip
        self.operations, self.magnitude = operations, magnitude

    def __call__(self, frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        side, size = frames.shape[1], (self.resolution, self.resolution)
        box = (0, 0, side, side) if self.smallest_crop is None else crop_box(side, self.smallest_crop, generator)
        mirrored = self.flip and generator.random() < 0.5
        names = generator.choice(list(OPERATIONS), self.operations)
        levels = generator.choice([-1, 1], self.operations) * self.magnitude / 10
        made = []
        for frame in frames:
            picture = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC, box=box)
            picture = ImageOps.mirror(picture) if mirrored else picture
            for name, level in zip(names, levels, strict=True):
                picture = OPERATIONS[name](picture, float(level))
            made.append(np.asarray(picture))
        return np.stack(made)


def mix(
    clips: tuple[np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray],
    mixup: float,
    cutmix: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mix two clips and their targets, by mixup or cutmix, chosen at random if both are on.

    mixup (arXiv 1710.09412) blends the clips; cutmix (arXiv 1905.04899) pastes a box of the second into the first.

    Args:
        clips: uint8 (T, R, R, 3) each. targets: float (C,) each.
        mixup, cutmix: alpha of the Beta distribution of the first clip's share; 0 is off, and at least one is on.
    Returns:
        (clip uint8 (T, R, R, 3), target (C,)), with the same shares in the target as in the pixels.
    """
    (first, second), side = clips, clips[0].shape[1]
    is_cut = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    alpha = cutmix if is_cut else mixup
    share = float(generator.beta(alpha, alpha))
    if is_cut:
        edge = round(side * math.sqrt(1 - share))
        top, left = (int(x) - edge // 2 for x in generator.integers(side, size=2))
        rows, columns = slice(max(0, top), max(0, top + edge)), slice(max(0, left), max(0, left + edge))
        mixed = first.copy()
        mixed[:, rows, columns] = second[:, rows, columns]
        share = 1 - mixed[0, rows, columns, 0].size / side**2
    else:
        blended = share * first.astype(np.float32) + (1 - share) * second.astype(np.float32)
        mixed = np.rint(blended).astype(np.uint8)
    return mixed, share * targets[0] + (1 - share) * targets[1]
