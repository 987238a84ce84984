"""The embedded world: endless labelled clips with exact masks, depth order and flow, from media in PyPI packages.

Clips are layered pictures: textured cut-outs and one handwritten digit drift over a background, pass behind each other
and leave the frame. The same (split, variant, seed, index) gives the same clip, because positions, colours and blending
use integer arithmetic.
"""

from __future__ import annotations

import itertools

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from tokenization.toyworld import items

# Clockwise; x points to the right and y downwards, as in pixel coordinates.
MOTIONS = {
    "right": (1, 0),
    "down-right": (1, 1),
    "down": (0, 1),
    "down-left": (-1, 1),
    "left": (-1, 0),
    "up-left": (-1, -1),
    "up": (0, -1),
    "up-right": (1, -1),
}
DIRECTIONS = tuple(MOTIONS.values())
VARIANTS = ("simple", "cluttered", "film")
# (dark, light) ends of a texture; few, so that codes encode shape and texture rather than colour.
PALETTE = (
    ((20, 20, 20), (235, 235, 235)),
    ((70, 10, 10), (245, 130, 110)),
    ((10, 55, 20), (130, 235, 140)),
    ((10, 20, 80), (120, 170, 250)),
    ((75, 60, 5), (250, 225, 110)),
)
INKS = ((8, 8, 8), (248, 248, 248))
# Flow of pixels whose motion is unknown: the film behind the objects of the variant "film".
UNKNOWN_FLOW = -32768
SIDE = 64  # pixels of a frame of the worlds under rules


class EndlessClips(IterableDataset):
    """An endless dataset of the clips `clip(0)`, `clip(1)`, ..., which DataLoader workers share."""

    def __iter__(self):
        worker = get_worker_info()
        index, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield self.clip(index)
            index += step

    def clip(self, index: int) -> dict:
        """The clip with this index."""
        raise NotImplementedError


class RuledClips(EndlessClips):
    """An endless stream of clips under rules, drawn at SIDE pixels and enlarged by a whole factor.

    A subclass names its `variant`, as behind "toyworld:", and the dataclass of its rules, `kind`.

    Raises:
        ValueError: an unknown split, a resolution that is no multiple of SIDE, or no frames.
    """

    variant: str
    kind: type

    def __init__(self, split: str = "train", rules=None, seed: int = 0, resolution: int = SIDE, num_frames: int = 16):
        items.check_split(split)
        if resolution % SIDE or resolution < SIDE or num_frames < 1:
            raise ValueError(
                f"resolution is {resolution} and num_frames is {num_frames}; toyworld:{self.variant} needs a multiple "
                f"of {SIDE} pixels and at least 1 frame."
            )
        self.split, self.rules, self.seed = split, rules or self.kind(), seed
        self.resolution, self.num_frames = resolution, num_frames


class ToyWorld(EndlessClips):
    """An endless stream of labelled clips; `clip(i)` returns the i-th one.

    Args:
        split: "train", "validation" or "test"; digits, cut-outs and photographs belong to one split each.
        variant: "simple" (plain background; the digit and one cut-out drift in the same direction at different speeds,
            as under a camera pan), "cluttered" (a photograph in the background, which may pan; the digit and three
            cut-outs, each with its own direction) or "film" (as cluttered, in front of a film; photographs replace the
            film outside train).
        seed: another seed gives other clips.
        resolution: side of the square frames in pixels; everything scales with it.
        num_frames: frames per clip.
    Raises:
        ValueError: an unknown split or variant, a resolution below 32, no frames, or more than the film has.

    Every clip is a dict: `video` uint8 (T, R, R, 3); `masks` uint8 (T, R, R), 0 for background, k for the k-th object;
    `depth_order` list of object numbers, farthest first; `flow` int16 (T, R, R, 2), (dx, dy) in pixels to the next
    frame; labels `digit` (0..9), `texture` (of the nearest cut-out), `motion` (of the digit, 8 directions); `clip_id`
    and `index`. The first object is the digit.
    """

    label_names = {"digit": [str(d) for d in range(10)], "texture": list(items.TEXTURES), "motion": list(MOTIONS)}

    def __init__(
        self, split: str = "train", variant: str = "simple", seed: int = 0, resolution: int = 64, num_frames: int = 16
    ):
        items.check_split(split)
        if variant not in VARIANTS:
            raise ValueError(f"toyworld has no variant '{variant}'; it has {', '.join(VARIANTS)}.")
        if resolution < 32 or num_frames < 1:
            raise ValueError(
                f"resolution is {resolution} and num_frames is {num_frames}; toyworld needs a resolution of at least "
                "32 and at least 1 frame."
            )
        self.split, self.variant, self.seed = split, variant, seed
        self.resolution, self.num_frames = resolution, num_frames

    def clip(self, index: int) -> dict:
        """The clip with this index, as described above."""
        # RandomState, not Generator: its streams are frozen, so clips do not change with numpy's versions.
        rng = np.random.RandomState([self.seed, VARIANTS.index(self.variant), items.SPLITS.index(self.split), index])
        size, frames = self.resolution, self.num_frames
        clip = np.empty((frames, size, size, 3), dtype=np.uint8)
        flow = np.empty((frames, size, size, 2), dtype=np.int16)
        masks = np.zeros((frames, size, size), dtype=np.uint8)
        self._paint_background(rng, clip, flow)

        objects, labels = self._draw_objects(rng)
        depth_order = (rng.permutation(len(objects)) + 1).tolist()
        for number in depth_order:
            picture, alpha, velocity = objects[number - 1]
            start = rng.randint(2**20, size=2).tolist()
            self._paste(clip, masks, flow, number, picture, alpha, start, velocity)
        nearest_cutout = next(number for number in reversed(depth_order) if number > 1)
        return {
            "video": clip,
            "masks": masks,
            "depth_order": depth_order,
            "flow": flow,
            "digit": labels["digit"],
            "texture": labels["textures"][nearest_cutout - 2],
            "motion": labels["motion"],
            "clip_id": f"toyworld/{self.variant}/{self.split}/{self.seed}/{index}",
            "index": index,
        }

    def _paint_background(self, rng: np.random.RandomState, clip: np.ndarray, flow: np.ndarray) -> None:
        size, frames = self.resolution, self.num_frames
        if self.variant == "simple":
            clip[:] = 88 + 16 * rng.randint(6)
            flow[:] = 0
            return
        if self.variant == "film" and self.split == "train":
            film = items.film(size * 5 // 4)
            if frames > len(film):
                raise ValueError(
                    f"num_frames is {frames}, but toyworld:film has only {len(film)} frames; set a smaller num_frames."
                )
            first = rng.randint(len(film) - frames + 1)
            top, left = (rng.randint(side - size + 1) for side in film.shape[1:3])
            clip[:] = film[first : first + frames, top : top + size, left : left + size]
            flow[:] = UNKNOWN_FLOW
            return
        # Large enough for a pan of one pixel per frame, for any length of the clip.
        pictures = items.photos(self.split, max(size * 3 // 2, size + frames - 1))
        picture = pictures[rng.randint(len(pictures))]
        if rng.randint(2):
            picture = picture[:, ::-1]
        dx, dy = DIRECTIONS[rng.randint(8)]
        if rng.randint(2):  # half of the backgrounds stand still
            dx = dy = 0
        travel = frames - 1
        # The window moves against the apparent motion and must stay on the picture.
        top = rng.randint(max(0, dy) * travel, picture.shape[0] - size + 1 + min(0, dy) * travel)
        left = rng.randint(max(0, dx) * travel, picture.shape[1] - size + 1 + min(0, dx) * travel)
        for t in range(frames):
            y, x = top - dy * t, left - dx * t
            clip[t] = picture[y : y + size, x : x + size]
        flow[:] = (dx, dy)

    def _draw_objects(self, rng: np.random.RandomState) -> tuple[list, dict]:
        """The digit, then the cut-outs, as (picture (S, S, 3), opacity (S, S), velocity)."""
        unit = self.resolution // 32
        own_ways = self.variant != "simple"
        direction = rng.randint(8)
        speeds = (1, 2) if rng.randint(2) else (2, 1)
        side = self.resolution // 2
        alpha, digit = items.digit(self.split, rng.randint(10**6), side)
        ink = np.broadcast_to(np.array(INKS[rng.randint(2)], dtype=np.uint8), (side, side, 3))
        objects = [(ink, alpha, self._velocity(direction, speeds[0] * unit))]
        textures = []
        for _ in range(3 if own_ways else 1):
            side = self.resolution * rng.randint(12, 19) // 32
            grey, alpha, texture = items.cutout(self.split, rng.randint(10**6), side)
            dark, light = (np.array(colour, dtype=np.int32) for colour in PALETTE[rng.randint(len(PALETTE))])
            picture = (dark + (light - dark) * grey[..., None].astype(np.int32) // 255).astype(np.uint8)
            way = rng.randint(8) if own_ways else direction
            pace = rng.randint(0, 3) if own_ways else speeds[1]
            objects.append((picture, alpha, self._velocity(way, pace * unit)))
            textures.append(texture)
        return objects, {"digit": digit, "textures": textures, "motion": direction}

    @staticmethod
    def _velocity(direction: int, pace: int) -> tuple[int, int]:
        dx, dy = DIRECTIONS[direction]
        return dx * pace, dy * pace

    def _paste(self, clip, masks, flow, number, picture, alpha, start, velocity) -> None:
        # Objects move on a torus: one that leaves on one side returns on the other. Its position is independent of its
        # direction, so no single frame reveals the motion. The torus is the frame ("simple": a part of every object is
        # always visible) or larger by the object (other variants: it may be out of sight for a while).
        size, side = self.resolution, len(picture)
        period = size if self.variant == "simple" else size + side
        opacity = alpha.astype(np.int32)[..., None]
        for t, column, row in itertools.product(range(self.num_frames), (0, period), (0, period)):
            x, y = ((begin + pace * t) % period - side for begin, pace in zip(start, velocity, strict=True))
            x, y = x + column, y + row
            x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, size), min(y + side, size)
            if x0 >= x1 or y0 >= y1:
                continue
            part = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
            under = clip[t, y0:y1, x0:x1]
            a = opacity[part]
            under[:] = (picture[part].astype(np.int32) * a + under.astype(np.int32) * (255 - a) + 127) // 255
            solid = alpha[part] > 127
            masks[t, y0:y1, x0:x1][solid] = number
            flow[t, y0:y1, x0:x1][solid] = velocity
