"""`toyworld:motion`: a world made to be learnt by a small model, with the exact truth of what moves, hides and returns.

A frame of 64 x 64 pixels is a room of 8 x 8 tokens with a line along its walls. Sprites of 2 x 2 tokens move by whole
tokens, so that each token shows one of a few hundred small pictures. They bounce at the walls, pass in front of each
other and behind a post or a wall, walk or spin. `MotionRules` has every rule, and harder ones. Everything is integer
arithmetic: the same (rules, split, seed, index) gives the same clip.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from tokenization.toyworld import items, sprites
from tokenization.toyworld.motion_rules import MotionRules
from tokenization.toyworld.world import MOTIONS, SIDE, RuledClips

TOKEN = 8
HALF = TOKEN // 2  # positions and speeds count half tokens
ROOM = SIDE // HALF
SPRITE = sprites.SIDE // HALF
OCCLUDER = 255  # in masks
OCCLUDERS = ("none", "post", "wall")
THICKNESS = 3 * TOKEN  # an object of two tokens is out of sight for two frames
PANNED = 12 * TOKEN  # width of the room that a camera pans over
# Indices of the palette.
FLOOR, LINE, STONE, JOINT, EDGE, BODY, TEXTURE = 0, 1, 2, 3, 4, 8, 24
COLOURS = ((22, 24, 38), (86, 92, 120), (124, 122, 116), (78, 76, 74), (168, 166, 158))
TRIES = 48  # starts from which the first free one is taken


@dataclass
class _Objects:
    """The objects of a clip: arrays over objects (N,), or over frames and objects (T + 1, N)."""

    sprite: np.ndarray
    hue: np.ndarray
    shade: np.ndarray
    period: np.ndarray
    phase: np.ndarray
    place: np.ndarray  # (T + 1, N, 2): x, y of the upper left corner in the room, in half tokens


@dataclass
class _Scene:
    """What a clip is painted from; `room` and `stone` hold indices of the palette."""

    objects: _Objects
    order: np.ndarray  # (N,): object numbers from 0, farthest first
    camera: np.ndarray  # (T + 1,): pixels of the room to the left of the frame
    room: np.ndarray  # (64, W)
    palette: np.ndarray
    occluder: int
    left: int  # pixels of the room to the left of and above the occluder
    top: int
    stone: np.ndarray


class MotionWorld(RuledClips):
    """An endless stream of clips of `toyworld:motion`; `clip(i)` returns the i-th one.

    Args:
        split: "train", "validation" or "test"; a creature in a hue belongs to one split (see sprites.owned).
        rules: the defaults if None.
        seed: another seed gives other clips.
        resolution: side of the frames, a multiple of 64; at 128 every pixel is doubled.
        num_frames: frames per clip.
    Raises:
        ValueError: an unknown split, another resolution, or no frames.

    Every clip is a dict of N objects and T frames, places and flow in pixels:
        `video` uint8 (T, R, R, 3).
        `masks` uint8 (T, R, R): 0 background, k for the k-th object, 255 for the post or wall.
        `depth_order`: object numbers 1..N, farthest first; the post or wall is in front of all.
        `flow` int16 (T, R, R, 2): (dx, dy) from each frame to the next one, of what is seen at the pixel; a camera's
            motion included. Walking and spinning are not in it.
        `place` int16 (T, N, 2): x, y of the upper left corner in the frame's pixels, inside the frame or not.
        `camera` int16 (T,): pixels of the room to the left of the frame; 0 unless the camera pans.
        `moving` bool (N,): through the room. `contact` bool (T, N): is at a wall of the room, and leaves it next.
        `visibility` float32 (T, N): share of its pixels that is seen.
        `sprite`, `hue`, `shade` int (N,): the identity. `phase` int (T, N): which of the sprite's pictures is shown.
        `period` int (N,): frames after which the pictures repeat; 1 if they never change.
        labels `objects` (N - 1), `occluder` (none, post or wall), `motion` of the first object (8 directions or rest,
            as it starts); `clip_id` and `index`.
    Since N differs between clips, a DataLoader needs `batch_size=None`, or as many `min_objects` as `max_objects`.
    """

    variant, kind = "motion", MotionRules
    label_names = {
        "objects": [str(n + 1) for n in range(len(sprites.HUES))],
        "occluder": list(OCCLUDERS),
        "motion": [*MOTIONS, "rest"],
    }

    def clip(self, index: int) -> dict:
        """The clip with this index, as described above."""
        scene = self._draw(index)
        canvas, owner, counts = self._render(scene, scene.objects, scene.order)
        return self._describe(index, scene, canvas, owner, counts)

    def hues(self, index: int) -> list[int]:
        """The hues of the objects of a clip, as its `hue`, without painting it."""
        return self._draw(index).objects.hue.tolist()

    def repaint(self, index: int, place: np.ndarray, phase: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """The frames of a clip with its objects elsewhere, painted in the same room, order and light.

        Args:
            place: (T, N, 2) in pixels of the frame, as the clip's `place`, multiples of half a token; a place outside
                the room is moved to its nearest one inside.
            phase: (T, N), as the clip's `phase`. shown: bool (N,), False leaves an object out.
        Returns:
            uint8 (T, R, R, 3).
        """
        scene = self._draw(index)
        far = np.array([scene.room.shape[1] // HALF - SPRITE, ROOM - SPRITE])
        camera = np.stack([scene.camera[:-1], 0 * scene.camera[:-1]], axis=1)[:, None]  # (T, 1, 2)
        moved = (np.asarray(place) // (self.resolution // SIDE) + camera) // HALF
        objects = replace(scene.objects, place=moved.clip(0, far), phase=np.asarray(phase))
        canvas, _, _ = self._render(scene, objects, scene.order[np.asarray(shown)[scene.order]])
        return enlarge(scene.palette[canvas], self.resolution // SIDE)

    def uncovered(self, index: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The frames and masks of a clip with nothing that hides its `number`-th object (from 1).

        The post or wall is gone and the object is nearest of all; everything else is as it was.

        Returns:
            video uint8 (T, R, R, 3) and masks uint8 (T, R, R), as in the clip.
        """
        scene = self._draw(index)
        scene = replace(scene, stone=scene.stone[:0, :0])
        order = [*(other for other in scene.order if other != number - 1), number - 1]
        canvas, owner, _ = self._render(scene, scene.objects, order)
        times = self.resolution // SIDE
        return enlarge(scene.palette[canvas], times), enlarge(owner, times)

    def _draw(self, index: int) -> _Scene:
        # RandomState, not Generator: its streams are frozen, so clips do not change with numpy's versions.
        rng = np.random.RandomState([self.seed, 8 + items.SPLITS.index(self.split), index])
        rules, frames = self.rules, self.num_frames
        panned = _chance(rng, rules.pan)
        width = PANNED if panned else SIDE
        camera = _camera(rng, frames + 1, (width - SIDE) // TOKEN) * TOKEN  # (T + 1,) pixels
        textured = _chance(rng, rules.textured)
        texture = rng.randint(TEXTURES)
        occluder, left, top = self._draw_occluder(rng, width)
        objects = self._draw_objects(rng, width, occluder, left, top, int(camera[0]))
        order = rng.permutation(len(objects.sprite))
        room = _floor(width, self.split, texture) if textured else bare_floor(width)
        palette = palette_of(objects.hue, objects.shade, textured)
        return _Scene(objects, order, camera, room, palette, occluder, left, top, stones(occluder, width))

    def _render(self, scene: _Scene, objects: _Objects, order) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(palette indices (T, 64, 64), masks (T, 64, 64), pixels of each object's pictures (T, N)).

        order: the objects to paint, farthest first.
        """
        frames, room, stone, left, top = self.num_frames, scene.room, scene.stone, scene.left, scene.top
        canvas = np.broadcast_to(room, (frames, *room.shape)).copy()
        owner = np.zeros(canvas.shape, dtype=np.uint8)
        counts = self._paint(canvas, owner, objects, order, bool(self.rules.overlap))
        canvas[:, top : top + stone.shape[0], left : left + stone.shape[1]] = stone
        owner[:, top : top + stone.shape[0], left : left + stone.shape[1]] = OCCLUDER
        if room.shape[1] > SIDE:
            columns = (scene.camera[:-1, None] + np.arange(SIDE))[:, None]
            canvas = np.take_along_axis(canvas, columns, axis=2)
            owner = np.take_along_axis(owner, columns, axis=2)
        return canvas, owner, counts

    def _draw_occluder(self, rng: np.random.RandomState, width: int) -> tuple[int, int, int]:
        """Which occluder, and the pixel of its upper left corner."""
        drawn, across, along = _chance(rng, self.rules.occluders), rng.randint(2), rng.randint(2)
        kind = 1 + across if drawn else 0
        start = (2 + along) * TOKEN + (width - SIDE) // 2 * (kind == 1)
        return kind, start if kind == 1 else 0, start if kind == 2 else 0

    def _draw_objects(self, rng, width: int, occluder: int, left: int, top: int, camera: int) -> _Objects:
        """Objects that start in sight: none behind the occluder in the first two frames, nor on another at the start.

        Where TRIES starts give no such place the last one is taken.
        """
        rules, frames = self.rules, self.num_frames
        count = rng.randint(rules.min_objects, rules.max_objects + 1)
        creatures, spinners = sprites.owned(self.split)
        free = np.ones(len(sprites.HUES), dtype=bool)  # hues that no object has yet
        far = np.array([width // HALF - SPRITE, ROOM - SPRITE])  # the last place along x and y
        times = np.arange(frames + 1)
        stone = stones(occluder, width).shape
        hidden_from = np.array([left, top]) // HALF - SPRITE
        hidden_to = np.array([left + stone[1], top + stone[0]]) // HALF
        drawn, places, phases = [], [], []
        for _ in range(count):
            # a split may have no spinner in the hues left
            spins = _chance(rng, rules.spinners)
            pairs = spinners if spins else creatures
            pairs = pairs[free[pairs[:, 1]]]
            sprite, hue = pairs[rng.randint(len(pairs))]
            free[hue] = False
            walks, rests, slow = (_chance(rng, chance) for chance in (rules.walkers, rules.rest, rules.half_tokens))
            period, begin, way = rng.randint(2, 5), rng.randint(sprites.PHASES), 1 - 2 * rng.randint(2)
            if spins:
                period = sprites.TURNS[sprite - sprites.NUM_CREATURES]
            elif not walks:
                period = 1
            phases.append((begin + way * times) % period)
            step = np.array(_ways(rules.directions)[rng.randint(rules.directions)])
            step = 0 * step if rests else step * (1 if slow else 2)
            speed = np.where(step == 0, 2, abs(step))
            starts = rng.randint(0, 2 * (far // speed + rules.pause), size=(TRIES, 2))
            seen = _places(starts, step, far, times[:2], rules.pause)  # (TRIES, 2, 2)
            behind = ((seen > hidden_from) & (seen < hidden_to)).all(-1).any(-1) if occluder else np.zeros(TRIES, bool)
            first = seen[:, 0]
            taken = behind | (first[:, 0] * HALF < camera) | (first[:, 0] * HALF + sprites.SIDE > camera + SIDE)
            for place in places:
                taken |= (abs(first - place[0]) < SPRITE).all(-1)
            start = starts[np.argmin(taken) if not taken.all() else -1]
            places.append(_places(start, step, far, times, rules.pause))
            drawn.append((sprite, hue, period))
        sprite, hue, period = np.array(drawn).T
        shades = sprites.SHADES[self.split]
        shade = np.array(shades)[rng.randint(len(shades), size=count)]
        return _Objects(sprite, hue, shade, period, np.stack(phases, 1), np.stack(places, 1))

    def _paint(self, canvas, owner, objects: _Objects, order, overlap: bool) -> np.ndarray:
        """Paint the objects, farthest first; returns the number of pixels of each object's pictures, (T, N)."""
        frames = len(canvas)
        inside = np.arange(sprites.SIDE)
        width = canvas.shape[2]
        counts = np.zeros((frames, len(objects.sprite)), dtype=np.int64)
        canvas, owner = canvas.reshape(-1), owner.reshape(-1)
        for number in order:
            picture = sprites.pictures()[objects.sprite[number], objects.phase[:frames, number]]  # (T, 16, 16)
            solid = picture > 0
            counts[:, number] = solid.sum((1, 2))
            x, y = (objects.place[:frames, number] * HALF).T
            first = np.arange(frames) * SIDE * width + y * width + x
            pixels = first[:, None, None] + inside[:, None] * width + inside
            colour = np.where(solid, picture + np.uint8(BODY - 1 + 2 * number), np.uint8(FLOOR))
            if overlap:
                canvas[pixels], owner[pixels] = colour, solid * np.uint8(number + 1)
            else:
                canvas[pixels[solid]], owner[pixels[solid]] = colour[solid], number + 1
        return counts

    def _describe(self, index: int, scene: _Scene, canvas, owner, counts) -> dict:
        objects, camera, palette = scene.objects, scene.camera, scene.palette
        frames, times, count = self.num_frames, self.resolution // SIDE, len(scene.order)
        place = objects.place * HALF - np.stack([camera, 0 * camera], 1)[:, None]  # (T + 1, N, 2)
        motion = np.zeros((frames, OCCLUDER + 1, 2), dtype=np.int16)  # of each number in `owner`
        motion[:, (0, OCCLUDER), 0] = (camera[:-1] - camera[1:])[:, None]
        motion[:, 1 : count + 1] = place[1:] - place[:-1]
        flow = np.stack([row.take(numbers, axis=0) for row, numbers in zip(motion, owner, strict=True)])
        seen = np.stack([(owner == number + 1).sum((1, 2)) for number in range(count)], 1)
        moved = np.diff(objects.place, axis=0)  # (T, N, 2)
        moving = (moved != 0).any((0, 2))
        far = np.array([scene.room.shape[1] // HALF - SPRITE, ROOM - SPRITE])
        at_wall = (objects.place[:-1] == 0) | (objects.place[:-1] == far)
        first = tuple(int(np.sign(axis[axis.nonzero()][:1].sum())) for axis in moved[:, 0].T)
        return {
            "video": enlarge(palette.take(canvas, axis=0), times),  # take: several times as fast as an index
            "masks": enlarge(owner, times),
            "depth_order": (scene.order + 1).tolist(),
            "flow": enlarge(flow, times) * np.int16(times),
            "place": (place[:-1] * times).astype(np.int16),
            "camera": (camera[:-1] * times).astype(np.int16),
            "moving": moving,
            "contact": (at_wall & (moved != 0)).any(-1),
            "visibility": (seen / counts).astype(np.float32),
            "sprite": objects.sprite,
            "hue": objects.hue,
            "shade": objects.shade,
            "phase": objects.phase[:-1],
            "period": objects.period,
            "objects": count - 1,
            "occluder": scene.occluder,
            "motion": list(MOTIONS.values()).index(first) if first in MOTIONS.values() else len(MOTIONS),
            "clip_id": f"toyworld/motion/{self.split}/{self.seed}/{index}",
            "index": index,
        }


def _chance(rng: np.random.RandomState, percent: int) -> bool:
    return bool(rng.randint(100) < percent)


def _ways(directions: int) -> tuple[tuple[int, int], ...]:
    ways = tuple(MOTIONS.values())
    return ways if directions == 8 else ways[::2]


def _places(start: np.ndarray, step: np.ndarray, far: np.ndarray, times: np.ndarray, pause: int) -> np.ndarray:
    """The places of an object that goes to and fro along x and y, and stays at a wall for `pause` more frames.

    Args:
        start: (..., 2), frames into the way there and back. step: (2,), half tokens a frame; 0 stays at the start.
        far: (2,), the last place; the first one is 0. times: (T,), frames.
    Returns:
        (..., T, 2), half tokens.
    """
    speed = np.where(step == 0, 2, abs(step))
    crossing = far // speed  # frames
    since = (start[..., None, :] + np.sign(step) * times[:, None]) % (2 * (crossing + pause))
    back = since - crossing - pause  # frames since it left the far wall, if it has
    return speed * np.where(back < 0, np.minimum(since, crossing), crossing - np.minimum(back, crossing))


def _camera(rng: np.random.RandomState, frames: int, far: int) -> np.ndarray:
    """Tokens by which the camera has moved in each frame, there and back over `far` tokens."""
    start = rng.randint(8)
    way = (start + np.arange(frames)) % (2 * far) if far else np.zeros(frames, dtype=np.int64)
    return np.minimum(way, 2 * far - way)


@functools.lru_cache(maxsize=4)
def bare_floor(width: int) -> np.ndarray:
    """A room, palette indices (64, width): the floor, and a line of one pixel along its walls."""
    room = np.full((SIDE, width), FLOOR, dtype=np.uint8)
    room[[0, -1]] = LINE
    room[:, [0, -1]] = LINE
    return room


TEXTURES = 8  # floors of each split
LEVELS = 8  # shades of a textured floor


@functools.lru_cache(maxsize=64)
def _floor(width: int, split: str, number: int) -> np.ndarray:
    """A room with a textured floor: squares of random brightness, of 2 to 6 pixels. A split has TEXTURES of its own."""
    rng = np.random.RandomState([items.SPLITS.index(split), number, 11])
    grain = (2, 3, 4, 6)[number % 4]
    coarse = rng.randint(0, LEVELS, (SIDE // grain + 1, PANNED // grain + 1)).astype(np.uint8)
    fine = coarse.repeat(grain, 0).repeat(grain, 1)[:SIDE, :width]
    return np.where(bare_floor(width) == LINE, LINE, TEXTURE + fine).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def stones(kind: int, width: int) -> np.ndarray:
    """The occluder, palette indices (H, W): stones of a token each, with light edges where objects pass behind."""
    height, across = ((0, 0), (SIDE, THICKNESS), (THICKNESS, width))[kind]
    y, x = np.mgrid[:height, :across]
    stone = np.where((y % TOKEN == TOKEN - 1) | (x % TOKEN == TOKEN - 1), JOINT, STONE).astype(np.uint8)
    if kind == 1:
        stone[:, [0, -1]] = EDGE
    elif kind == 2:
        stone[[0, -1]] = EDGE
    return stone


def palette_of(hues, shades, textured: bool) -> np.ndarray:
    """Palette index -> RGB, uint8 (32, 3), of a clip whose objects have these hues and shades (see `sprites.tones`).

    Objects on a textured floor hide it with its mean.
    """
    palette = np.zeros((TEXTURE + LEVELS, 3), dtype=np.uint8)
    palette[: len(COLOURS)] = COLOURS
    palette[TEXTURE:] = np.arange(LEVELS)[:, None] * 6 + np.array((14, 16, 28))
    if textured:
        palette[FLOOR] = palette[TEXTURE:].mean(0)
    for number, (hue, shade) in enumerate(zip(hues, shades, strict=True)):
        palette[BODY + 2 * number : BODY + 2 * number + 2] = sprites.tones(hue, shade)
    return palette


def enlarge(frames: np.ndarray, times: int) -> np.ndarray:
    return frames if times == 1 else frames.repeat(times, axis=1).repeat(times, axis=2)
