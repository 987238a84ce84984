"""`toyworld:turntable`: objects of three boxes that turn about the vertical axis, with the exact angle of each frame.

The floor and the colours are those of `toyworld:motion`. Everything that differs between clips is drawn with integers,
and the renderer rounds in the same way everywhere: the same (rules, split, seed, index) gives the same clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenization.toyworld import items, turntable_objects
from tokenization.toyworld.turntable_objects import CIRCLE, SHADES, SIDE, boxes, owned, palette_of
from tokenization.toyworld.turntable_rules import TURNS, TurntableRules
from tokenization.toyworld.world import RuledClips

GRID = 15  # half degrees: all angles are multiples, since 7.5 degrees divide every step


@dataclass(frozen=True)
class _Object:
    """What a clip shows: (body, head, arm), whether it is mirrored, the hues of its parts, and its angles (T,)."""

    shape: np.ndarray
    mirrored: bool
    hues: np.ndarray
    turn: int
    way: int
    angles: np.ndarray


class TurntableWorld(RuledClips):
    """An endless stream of clips of `toyworld:turntable`; `clip(i)` returns the i-th one.

    Args:
        split: "train", "validation" or "test"; a shape (body, head, arm) belongs to one split.
        rules: the defaults if None.
        seed: another seed gives other clips.
        resolution: side of the frames, a multiple of 64; at 128 every pixel is doubled.
        num_frames: frames per clip.
    Raises:
        ValueError: an unknown split, another resolution, or no frames.

    Every clip is a dict: `video` uint8 (T, R, R, 3); `masks` uint8 (T, R, R), 0 background, 1 body, 2 head, 3 arm;
    `angle` float32 (T,), degrees in [0, 360) by which the object is turned counterclockwise, seen from above;
    `step` float, degrees from a frame to the next, negative if clockwise; `shape` int (3,), its body, head and arm;
    `mirrored` bool; `hues` int (3,); labels `direction` (counterclockwise, clockwise) and `turn` (frames of a full
    turn); `clip_id` and `index`.
    """

    variant, kind = "turntable", TurntableRules
    label_names = {"direction": ["counterclockwise", "clockwise"], "turn": [str(turn) for turn in TURNS]}

    def clip(self, index: int) -> dict:
        """The clip with this index, as described above."""
        drawn = self._draw(index)
        video, masks = self._render(drawn, drawn.angles)
        return {
            "video": video,
            "masks": masks,
            "angle": (drawn.angles / np.float32(2)).astype(np.float32),
            "step": drawn.way * 360 / drawn.turn,
            "shape": drawn.shape,
            "mirrored": drawn.mirrored,
            "hues": drawn.hues,
            "direction": 0 if drawn.way > 0 else 1,
            "turn": TURNS.index(drawn.turn),
            "clip_id": f"toyworld/turntable/{self.split}/{self.seed}/{index}",
            "index": index,
        }

    def views(self, index: int, angles) -> np.ndarray:
        """The object of a clip at any angles: uint8 (A, R, R, 3).

        angles: (A,) degrees, multiples of a half. Raises ValueError for others.
        """
        halves = np.asarray(angles, float) * 2
        if (halves != np.rint(halves)).any():
            raise ValueError("The angles of views are not multiples of half a degree; round them.")
        return self._render(self._draw(index), halves.astype(int))[0]

    def _draw(self, index: int) -> _Object:
        # RandomState, not Generator: its streams are frozen, so clips do not change with numpy's versions.
        rng = np.random.RandomState([self.seed, 16 + items.SPLITS.index(self.split), index])
        rules, shapes = self.rules, owned(self.split)
        shape = shapes[rng.randint(len(shapes))]
        mirrored, hues = bool(rng.randint(2)), rng.permutation(rules.hues)[: len(turntable_objects.PARTS)]
        any_turn = TURNS[rng.randint(len(TURNS))]
        turn = rules.turn or any_turn
        way = 1 - 2 * rng.randint(2) if rules.directions == 2 else 1
        start = rng.randint(CIRCLE // GRID) * GRID
        angles = (start + way * (CIRCLE // turn) * np.arange(self.num_frames)) % CIRCLE
        return _Object(shape, mirrored, hues, turn, int(way), angles)

    def _render(self, drawn: _Object, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames (A, R, R, 3) and masks (A, R, R)."""
        seen = turntable_objects.render(boxes(drawn.shape, drawn.mirrored), angles, self.rules.elevation)
        times = self.resolution // SIDE
        if times > 1:
            seen = seen.repeat(times, axis=1).repeat(times, axis=2)
        part = np.array([0, *np.repeat(np.arange(1, 4), SHADES)], dtype=np.uint8)
        return palette_of(drawn.hues).take(seen, axis=0), part[seen]
