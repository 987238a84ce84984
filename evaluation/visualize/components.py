"""Principal components of patch features as colours, alike from layer to layer (paper App. A.12)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA

CHANNELS = 3
REACH = 2.0  # standard deviations from the mean at which a colour channel is empty or full


@dataclass(frozen=True)
class Components:
    """The first three principal components of the features of a layer.

    Fields:
        pca: scikit-learn's, whitened: each component has variance 1 on the features that it was fitted to.
        position_mean: (h, w, D), the mean feature at each place of the grid, which is subtracted first; or None.
        order, signs: (3,), which component becomes which colour channel, and whether it is flipped (-1).
    """

    pca: PCA
    position_mean: np.ndarray | None
    order: np.ndarray
    signs: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Features (..., h, w, D) -> float32 (..., h, w, 3), in standard deviations, in the order of the channels."""
        features = np.asarray(features)
        centred = features if self.position_mean is None else features - self.position_mean
        found = self.pca.transform(centred.reshape(-1, features.shape[-1]))
        return (found[:, self.order] * self.signs).reshape(*features.shape[:-1], CHANNELS).astype(np.float32)

    @property
    def explained(self) -> list[float]:
        """Share of the variance that each channel explains (of what is left without the position mean)."""
        return self.pca.explained_variance_ratio_[self.order].tolist()


def fit_components(features: np.ndarray, remove_position_mean: bool = False) -> Components:
    """The first three components of features (N, ..., h, w, D), by scikit-learn's PCA with an exact decomposition.

    Raises:
        ValueError: fewer than 4 tokens or 3 features.
    """
    features = np.asarray(features, np.float32)
    width = features.shape[-1]
    if features.size // width <= CHANNELS or width < CHANNELS:
        raise ValueError(
            f"There are {features.size // width} tokens of {width} features; three components need at least "
            f"{CHANNELS + 1} tokens and {CHANNELS} features, so use more images or a wider layer."
        )
    mean = None
    if remove_position_mean:
        mean = features.reshape(-1, *features.shape[-3:]).mean(0)
        features = features - mean
    pca = PCA(CHANNELS, whiten=True, svd_solver="full").fit(features.reshape(-1, width))
    return Components(pca, mean, np.arange(CHANNELS), np.ones(CHANNELS))


def match(scores: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which component stands for which one of another layer, by the correlation of their scores on the same tokens.

    Args:
        scores, reference: (N, h, w, 3); grids of different sizes are averaged to the smaller one.
    Returns:
        (order (3,), signs (3,)): scores[..., order] * signs is most like the reference. The sum of the absolute
        correlations is maximal (Hungarian algorithm).
    """
    size = tuple(min(pair) for pair in zip(scores.shape[1:3], reference.shape[1:3], strict=True))
    ours, theirs = (_reduced(each, size) for each in (scores, reference))
    correlation = np.nan_to_num(np.corrcoef(theirs.T, ours.T)[:CHANNELS, CHANNELS:])
    _, order = linear_sum_assignment(-abs(correlation))
    return order, np.where(correlation[np.arange(CHANNELS), order] < 0, -1.0, 1.0)


def _reduced(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scores (N, h, w, 3) -> (N * size, 3)."""
    grids = torch.as_tensor(np.ascontiguousarray(scores)).float().permute(0, 3, 1, 2)
    return torch.nn.functional.adaptive_avg_pool2d(grids, size).permute(0, 2, 3, 1).reshape(-1, CHANNELS).numpy()


def aligned(components: Components, scores: np.ndarray, reference: np.ndarray) -> Components:
    """The components with the order and signs that are most like another layer's; arguments as in `match`."""
    order, signs = match(scores, reference)
    return replace(components, order=components.order[order], signs=components.signs[order] * signs)


def colours(scores: np.ndarray) -> np.ndarray:
    """Scores (..., 3) in standard deviations -> uint8 red, green, blue; one scale for all pictures and layers.

    The mean is mid-grey; REACH standard deviations below it a channel is 0, above it 255.
    """
    return (((np.asarray(scores) / REACH + 1) / 2).clip(0, 1) * 255).round().astype(np.uint8)


def pca_pictures(
    features: np.ndarray, components: Components | None = None, remove_position_mean: bool = False
) -> np.ndarray:
    """Patch features as colours: (..., h, w, D) -> uint8 (..., h, w, 3), a pixel per token.

    Args:
        components: of `fit_components`, from other images; None fits them to these features.
        remove_position_mean: of the fit, as there.
    Raises:
        ValueError: as `fit_components`.
    """
    components = components or fit_components(features, remove_position_mean)
    return colours(components.scores(features))
