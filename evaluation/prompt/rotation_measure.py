"""The angle that a frame shows, by render-and-compare, and floors for turning objects.

Arrays are over objects (C,), all frames (T,) or the drawn ones (G,), which follow P prompt frames. Angles are degrees.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics import verdict
from evaluation.prompt.rotation_results import RotationScores
from evaluation.results import Versus
from training.scores import accuracy_interval, bootstrap_interval

ALIKE = 15  # degrees: equally good views closer than this are one view, of which the middle is taken
CIRCLE = 360


def difference(a, b) -> np.ndarray:
    """a - b on the circle, in [-180, 180) degrees."""
    return (np.asarray(a, float) - b + CIRCLE / 2) % CIRCLE - CIRCLE / 2


def find_angles(frames: np.ndarray, views: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """The angle of the view that is nearest to each frame (paper silent; ours).

    Args:
        frames: uint8 (N, R, R, 3). views: uint8 (A, R, R, 3), the object at `angles` (A,) degrees.
    Returns:
        (N,) degrees in [0, 360). Nearest is the least squared error, an exact integer. Of equally near views those
        within ALIKE of the first are averaged, since an object may look the same at neighbouring angles.
    """
    x, y = (each.reshape(len(each), -1).astype(np.float64) for each in (frames, views))
    errors = (x * x).sum(1)[:, None] - 2 * x @ y.T + (y * y).sum(1)
    found = []
    for row in errors:
        near = angles[row == row.min()]
        away = difference(near, near[0])
        found.append((near[0] + away[np.abs(away) < ALIKE].mean()) % CIRCLE)
    return np.array(found)


def flow_continued(frames: np.ndarray, num_frames: int) -> np.ndarray:
    """Frames whose pixels keep the motion that they had into the last frame: uint8 (num_frames, R, R, 3).

    frames: uint8 (P, R, R, 3), the prompt. The motion is the optical flow (TV-L1) between the last two; with a prompt
    of one frame nothing moves. Drawn frame h is the last prompt frame, warped by h times the flow.
    """
    from skimage.registration import optical_flow_tvl1
    from skimage.transform import warp

    last, side = frames[-1], frames.shape[1]
    if len(frames) < 2:
        return last[None].repeat(num_frames, 0)
    before, now = (frame.astype(np.float64).mean(-1) / 255 for frame in frames[-2:])
    back = optical_flow_tvl1(now, before)  # (2, R, R) of y, x: where a pixel of `now` was before
    places = np.mgrid[:side, :side]
    drawn = []
    for horizon in range(1, num_frames + 1):
        channels = [warp(last[..., c] / 255, places + horizon * back, mode="edge") for c in range(3)]
        drawn.append(np.rint(np.stack(channels, -1) * 255).astype(np.uint8))
    return np.stack(drawn)


def psnr(frames: np.ndarray, true: np.ndarray) -> np.ndarray:
    """dB of each frame (C, G), at most 100, from uint8 (C, G, R, R, 3)."""
    error = ((frames.astype(np.float32) - true) ** 2).mean((2, 3, 4))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 / 1e10))


def scores(found: np.ndarray, true: np.ndarray, step: np.ndarray, quality: np.ndarray) -> RotationScores:
    """The scores of angles `found` against `true`, both (C, G).

    step: (C,), degrees a frame. quality: (C, G), PSNR.
    """
    errors = np.abs(difference(found, true))
    within = is_within(found, true, step)
    columns = [errors[:, g : g + 1] for g in range(errors.shape[1])]
    return RotationScores(
        error=np.median(errors, 0).tolist(),
        error_ci95=[median_interval(column) for column in columns],
        within=within.mean(0).tolist(),
        within_ci95=[accuracy_interval(column, range(len(column))) for column in within.T],
        psnr=quality.mean(0).tolist(),
        all_error=float(np.median(errors)),
        all_error_ci95=median_interval(errors),
        all_within=float(within.mean()),
        all_within_ci95=accuracy_interval(within.ravel(), _objects(within)),
    )


def is_within(found: np.ndarray, true: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Whether angles (C, G) are within half a step (C,) of the true ones, bool (C, G)."""
    return np.abs(difference(found, true)) <= np.abs(step)[:, None] / 2


def compare(within: np.ndarray, other: np.ndarray) -> Versus:
    """The share of frames within half a step minus that of a floor, bool (C, G) each, objects resampled."""
    gains = within.astype(float) - other
    ci95 = bootstrap_interval(gains.ravel(), groups=_objects(gains))
    return Versus(difference=float(gains.mean()), ci95=ci95, verdict=verdict(ci95))


def median_interval(values: np.ndarray, seed: int = 0, samples: int = 2000) -> list[float]:
    """95 % percentile bootstrap interval of the median of values (C, G), with whole objects resampled."""
    rows = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
    medians = np.median(values[rows].reshape(samples, -1), axis=1)
    return [float(bound) for bound in np.quantile(medians, (0.025, 0.975))]


def _objects(values: np.ndarray) -> np.ndarray:
    return np.arange(len(values)).repeat(values.shape[1])
