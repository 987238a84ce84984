"""How right drawn labels are: AbsRel and delta 1 of depth, end-point error of flow, IoU of masks; a number per item."""

from __future__ import annotations

import numpy as np

from training.prompting.tasks import Task

# measure -> whether more is better
MEASURES = {
    "depth": {"absrel": False, "delta1": True, "absrel_near": False, "nats": False},
    "flow": {"epe": False, "epe_moving": False, "nats": False},
    "segmentation": {"miou": True, "miou_held_out": True, "nats": False},
}
# of single pairs (and nats): none that needs the embedded world's floor, still objects or hues
PAIR_MEASURES = {"depth": ("absrel", "delta1"), "flow": ("epe",), "segmentation": ("miou",)}
TITLES = {
    "absrel": "AbsRel",
    "delta1": "delta 1, %",
    "absrel_near": "AbsRel, objects and occluder",
    "epe": "EPE, px",
    "epe_moving": "EPE where it moves, px",
    "miou": "mIoU, %",
    "miou_held_out": "mIoU of the held-out class, %",
    "nats": "nats per label token",
}
PERCENT = ("delta1", "miou", "miou_held_out")
DELTA = 1.25


def measure(drawn: np.ndarray, truth: np.ndarray, task: Task, held_out: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """The measures of drawn labels, each (N,), nan where an item has nothing to judge.

    absrel: mean of |drawn - true| / true over the known pixels; delta1: share of them whose ratio is below 1.25 either
    way; absrel_near: of the pixels nearer than the farthest depth of the range. epe: mean length of the difference of
    flow, in pixels; epe_moving: where the true flow is not 0. miou: mean over the classes in the truth, without the
    background, of the intersection over union of an item; miou_held_out: of the classes `held_out` only.

    Args:
        drawn, truth: (N, labels, R, R); nan in the truth is unknown, and left out.
        held_out: classes.
    """
    if task.name == "depth":
        return _depth(drawn[:, 0], truth[:, 0], task.high)
    if task.name == "flow":
        return _flow(drawn, truth)
    classes = _ious(drawn[:, 0], truth[:, 0])
    chosen = [{k: iou for k, iou in each.items() if k in held_out} for each in classes]
    return {"miou": _means(classes), "miou_held_out": _means(chosen)}


def _depth(drawn: np.ndarray, truth: np.ndarray, far: float) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(drawn - truth) / truth
        ratio = np.maximum(drawn / truth, truth / drawn)
    close = np.where(np.isnan(ratio), np.nan, ratio < DELTA)
    return {
        "absrel": _mean(relative),
        "delta1": _mean(close),
        "absrel_near": _mean(np.where(truth < far, relative, np.nan)),
    }


def _flow(drawn: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    error = np.sqrt(((drawn - truth) ** 2).sum(1))
    moves = (truth != 0).any(1)
    return {"epe": _mean(error), "epe_moving": _mean(np.where(moves, error, np.nan))}


def _ious(drawn: np.ndarray, truth: np.ndarray) -> list[dict[int, float]]:
    """Of each item: class in the truth -> intersection over union."""
    found = []
    for one, true in zip(drawn, truth, strict=True):
        known = ~np.isnan(true)
        own = {}
        for k in np.unique(true[known & (true > 0)]).astype(int):
            union = ((one == k) | (true == k)) & known
            own[int(k)] = float(((one == k) & (true == k)).sum() / union.sum())
        found.append(own)
    return found


def _means(classes: list[dict[int, float]]) -> np.ndarray:
    return np.array([np.mean(list(each.values())) if each else np.nan for each in classes])


def _mean(numbers: np.ndarray) -> np.ndarray:
    """Mean over the pixels that are known, (N, R, R) -> (N,); nan without any."""
    known = ~np.isnan(numbers)
    count = known.sum((1, 2))
    total = np.where(known, numbers, 0.0).sum((1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
