"""J, F and J&F of DAVIS (Perazzi et al. 2016, Pont-Tuset et al. 2017), the numbers of the official evaluation.

J is the intersection over union of two masks. F compares their outlines: precision and recall of boundary pixels
that have one of the other outline within 0.008 of the diagonal. Void pixels are background, and the first and the
last frame are not scored. Written anew from the definition; equal to the official code to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOID = 255
TOLERANCE = 0.008  # of the frame's diagonal
BINS = 4  # of a sequence's frames; decay is the mean of the first minus that of the last


def object_masks(labels: np.ndarray, num_objects: int) -> np.ndarray:
    """bool (num_objects, H, W) of object numbers (H, W); void and larger numbers belong to none."""
    return labels == np.arange(1, num_objects + 1, dtype=labels.dtype)[:, None, None]


def outline(mask: np.ndarray) -> np.ndarray:
    """Boundary pixels of a mask, bool (H, W): those that differ from their right, lower or lower right neighbour."""
    found = np.zeros_like(mask)
    found[:-1, :-1] = (mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1])
    found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    found[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    found[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return found


def tolerance(shape: tuple[int, int]) -> int:
    """Pixels by which boundary pixels may be apart."""
    return int(np.ceil(TOLERANCE * np.linalg.norm(shape)))


def widened(boundary: np.ndarray, radius: int) -> np.ndarray:
    """All pixels within `radius` of a boundary pixel, bool (H, W)."""
    h, w = boundary.shape
    offsets = np.arange(-radius, radius + 1)
    dy, dx = np.nonzero(offsets[:, None] ** 2 + offsets**2 <= radius**2)
    found = np.zeros((h + 2 * radius, w + 2 * radius), dtype=bool)
    y, x = np.nonzero(boundary)
    # Boundary pixels are few, so painting their discs takes less than a dilation of the frame.
    for each_y, each_x in zip(dy, dx, strict=True):
        found[y + each_y, x + each_x] = True
    return found[radius : radius + h, radius : radius + w]


@dataclass
class Truth:
    """What the masks of a frame are compared with: true masks, outlines and widened outlines, bool (O, H, W)."""

    masks: np.ndarray
    outlines: np.ndarray
    widened: np.ndarray
    radius: int

    @classmethod
    def of(cls, labels: np.ndarray, num_objects: int) -> Truth:
        """From object numbers (H, W)."""
        masks = object_masks(labels, num_objects)
        radius = tolerance(labels.shape)
        outlines = np.stack([outline(mask) for mask in masks])
        return cls(masks, outlines, np.stack([widened(each, radius) for each in outlines]), radius)

    def score(self, labels: np.ndarray) -> tuple[list[float], list[float]]:
        """J and F of each object for predicted object numbers (H, W)."""
        masks = object_masks(labels, len(self.masks))
        j = [jaccard(*pair) for pair in zip(self.masks, masks, strict=True)]
        return j, [self._boundary(number, mask) for number, mask in enumerate(masks)]

    def _boundary(self, number: int, mask: np.ndarray) -> float:
        found, true = outline(mask), self.outlines[number]
        num_found, num_true = int(found.sum()), int(true.sum())
        if num_found == 0 or num_true == 0:
            # One of both outlines has all of its (no) pixels right; with none at all, so has the other.
            return float(num_found == num_true)
        precision = int((found & self.widened[number]).sum()) / num_found
        recall = int((true & widened(found, self.radius)).sum()) / num_true
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def jaccard(true: np.ndarray, found: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = int((true | found).sum())
    return int((true & found).sum()) / union if union else 1.0


@dataclass(frozen=True)
class Statistics:
    """Mean over frames, share of frames above 0.5, and the first quarter's mean minus the last quarter's."""

    mean: float
    recall: float
    decay: float


def statistics(values) -> Statistics:
    """Statistics of the scores of consecutive frames of one object, (T,), T > 0."""
    values = np.asarray(values, dtype=float)
    # The official bins share the frame at their border. It keeps these numbers in 8 bits, so that beyond 256 frames
    # its decay is of other frames; here it is not.
    ends = (np.round(np.linspace(1, len(values), BINS + 1) + 1e-10) - 1).astype(int)
    first, last = values[ends[0] : ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return Statistics(float(np.mean(values)), float(np.mean(values > 0.5)), float(np.mean(first) - np.mean(last)))
