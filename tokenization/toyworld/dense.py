"""Exact depth and classes of every pixel of `toyworld:motion`, from its masks and order of depth."""

from __future__ import annotations

import numpy as np

from tokenization.toyworld import motion, sprites

# Metres from the camera, which looks down on the room. Objects are on planes by their order, farthest first; a fifth
# object shares the plane of the fourth. The world has only an order, so these distances are ours.
FLOOR, OBJECTS, OCCLUDER = 6.0, (5.0, 4.0, 3.0, 2.0, 2.0), 1.0
CLASSES = len(sprites.HUES)


def depth(clip: dict, time: int) -> np.ndarray:
    """Metres to what is seen at each pixel of a frame of `MotionWorld.clip`, float32 (R, R)."""
    planes = np.full(motion.OCCLUDER + 1, FLOOR, np.float32)
    planes[motion.OCCLUDER] = OCCLUDER
    for rank, number in enumerate(clip["depth_order"]):
        planes[number] = OBJECTS[rank]
    return planes[clip["masks"][time]]


def classes(clip: dict, time: int) -> np.ndarray:
    """Class of what is seen at each pixel, uint8 (R, R): 0 for floor and occluder, 1 + hue for an object."""
    table = np.zeros(motion.OCCLUDER + 1, np.uint8)
    table[1 : len(clip["hue"]) + 1] = np.asarray(clip["hue"]) + 1
    return table[clip["masks"][time]]
