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


def warped_by_flow(prompts, num_frames: int) -> np.ndarray:
    """The last frame of each prompt, moved on along its optical flow: uint8 (C, num_frames, R, R, 3).

    The flow between the last two frames is scikit-image's TV-L1 (Zach et al. 2007, with its defaults), of grey values.
    Drawn frame h shows at every place what lies h times the flow away in the last frame; beyond the border its nearest
    pixel. With a prompt of one frame nothing moves. Paper silent; ours.

    Args:
        prompts: iterable of uint8 (P, R, R, 3).
    Raises:
        ImportError: scikit-image is not installed.
    """
    from skimage.color import rgb2gray
    from skimage.registration import optical_flow_tvl1
    from skimage.transform import warp

    found = []
    for frames in prompts:
        before, last = frames[max(0, len(frames) - 2)], frames[-1]
        # last(x) = before(x + flow(x)), so what is at x now was at x + flow(x), and what comes to x is there too
        flow = optical_flow_tvl1(rgb2gray(last), rgb2gray(before))
        grid = np.stack(np.mgrid[: last.shape[0], : last.shape[1]])
        for horizon in range(1, num_frames + 1):
            channels = [warp(last[..., c], grid + horizon * flow, mode="edge", preserve_range=True) for c in range(3)]
            found.append(np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8))
    return np.stack(found).reshape(-1, num_frames, *found[0].shape)


def previous_frame(predictors: Predictors, codes: np.ndarray, num_frames: int) -> np.ndarray:
    """The most likely code after the code at the same position, frame by frame: codes (C, num_frames, h, w).

    codes: of the last prompt frames, (C, h, w).
    """
    found = []
    for _ in range(num_frames):
        codes = predictors.most_likely_next(codes)
        found.append(codes)
    return np.stack(found, axis=1)
