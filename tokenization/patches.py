"""The continuous tokenizer: frames to normalised patches and back, for the paper's patch-patch and patch-dVAE rows.

The paper says only "normalised patches". We follow MAE (He et al. 2022, Sec. 4): each patch is normalised by its own
mean and unbiased variance over its 3 * P * P values.
"""

from dataclasses import dataclass

import torch

from .tokenizer_base import check_pixels

EPS = 1e-6


@dataclass(frozen=True)
class NormalisedPatches:
    """Output of `Patches.encode`, with h x w patches per frame.

    values (..., h, w, 3 * P * P): normalised pixels of a patch, row by row, RGB last. `values.flatten(-3, -2)` gives
    the raster order (..., h * w, 3 * P * P) of token rows. mean, variance (..., h, w, 1): of each patch, before
    normalisation.
    """

    values: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor


@dataclass(frozen=True)
class Patches:
    """Frames <-> normalised patches of P x P pixels. The paper's 16 x 16 patches of a 128-pixel frame have P = 8.

    Raises:
        ValueError: `patch_size` is not a positive integer.
    """

    patch_size: int = 8

    def __post_init__(self):
        if not isinstance(self.patch_size, int) or self.patch_size < 1:
            raise ValueError(f"patch_size must be a positive integer, got {self.patch_size!r}.")

    def encode(self, pixel_values: torch.Tensor) -> NormalisedPatches:
        """Frames (B, 3, H, W) or (B, T, 3, H, W), floats in [0, 1], sides multiples of P.

        Raises:
            ValueError: wrong type, shape or range.
        """
        is_video = isinstance(pixel_values, torch.Tensor) and pixel_values.ndim == 5
        frames = pixel_values.flatten(0, 1) if is_video else pixel_values
        check_pixels(frames, self.patch_size)
        p = self.patch_size
        # (N, 3, h * P, w * P) -> (N, h, w, P, P, 3)
        patches = frames.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 3, 5, 1).flatten(3)
        if is_video:
            patches = patches.unflatten(0, pixel_values.shape[:2])
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return NormalisedPatches((patches - mean) / (variance + EPS).sqrt(), mean, variance)

    def decode(self, values: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """The inverse of `encode`, not clipped: (..., h, w, 3 * P * P) -> frames (..., 3, h * P, w * P).

        Args:
            values: patches from `encode`, or predicted ones.
            mean, variance: (..., h, w, 1), from `encode`; normalised patches alone do not determine the pixels.
        Raises:
            ValueError: the shapes do not match.
        """
        p = self.patch_size
        if values.ndim < 4 or values.shape[-1] != 3 * p * p:
            raise ValueError(f"patches must have the shape (..., h, w, {3 * p * p}), got {tuple(values.shape)}.")
        if not mean.shape == variance.shape == (*values.shape[:-1], 1):
            raise ValueError(
                f"mean and variance must have the shape {(*values.shape[:-1], 1)}, "
                f"got {tuple(mean.shape)} and {tuple(variance.shape)}."
            )
        patches = values * (variance + EPS).sqrt() + mean
        frames = patches.unflatten(-1, (p, p, 3)).flatten(0, -6)  # (N, h, w, P, P, 3)
        frames = frames.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (N, 3, h * P, w * P)
        return frames.reshape(*values.shape[:-3], *frames.shape[1:])
