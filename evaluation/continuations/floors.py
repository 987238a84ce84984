"""Continuations without a trained model, which a trained one has to exceed on the same clips."""

from __future__ import annotations

import numpy as np

from evaluation.continuations.truth import HIDDEN, Truth
from evaluation.predictors import Predictors
from tokenization.toyworld import MotionWorld


def copy(truth: Truth) -> np.ndarray:
    """The last prompt frame, repeated: uint8 (C, G, 64, 64, 3)."""
    last = truth.video[:, truth.prompt - 1 : truth.prompt]
    return last.repeat(truth.num_frames, 1)


def constant_velocity(world: MotionWorld, truth: Truth) -> np.ndarray:
    """Every object moved on as it moved into the last prompt frame: uint8 (C, G, 64, 64, 3).

    It keeps the phase of that frame and stops at the walls, without a bounce. The room, the camera, the post or wall
    and the order of the objects are the true ones; an object that is hidden in the last prompt frame is not drawn. With
    a prompt of one frame nothing moves.
    """
    prompt, last = truth.prompt, truth.prompt - 1
    found = np.empty_like(truth.drawn("video"))
    times = np.arange(truth.video.shape[1]) - last  # 0 at the last prompt frame
    for index in range(len(found)):
        own = truth.clip == index
        camera = np.stack([truth.camera[index], 0 * truth.camera[index]], 1).astype(int)  # (T, 2)
        room = truth.place[own] + camera  # (N, T, 2)
        velocity = room[:, last] - room[:, max(0, last - 1)]
        place = room[:, last, None] + velocity[:, None] * times[:, None] - camera
        phase = truth.phase[own][:, last, None].repeat(len(times), 1)
        shown = truth.visibility[own][:, last] >= HIDDEN
        found[index] = world.repaint(index, place.swapaxes(0, 1), phase.T, shown)[prompt:]
    return found


def previous_frame(predictors: Predictors, codes: np.ndarray, num_frames: int) -> np.ndarray:
    """The most likely code after the code at the same position, frame by frame: codes (C, num_frames, h, w).

    codes: of the last prompt frames, (C, h, w).
    """
    found = []
    for _ in range(num_frames):
        codes = predictors.most_likely_next(codes)
        found.append(codes)
    return np.stack(found, axis=1)
