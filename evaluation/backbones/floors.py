"""Features without pre-training: baselines that a trained backbone has to exceed, with the same heads.

pixels, random_filters and hog read frames; histogram reads the ids of a Toto, and so has the information that is in the
codes. All have one layer, 0. Brightness and counts are informative here, so features are not normalised before a head
standardises them.
"""

import numpy as np
import torch
from torch import nn

from evaluation.backbones.contract import Backbone, default_device


class Floor(Backbone):
    """A backbone with one layer and no trainable weights; `grid` computes its features."""

    def __init__(self, device: torch.device | None = None):
        self.device = device or default_device()
        self.model, self.blocks = nn.Module(), []

    def grids(self, inputs: torch.Tensor, layers: list[int], reduce=None) -> dict:
        self.check_layers(layers)
        grid = self.grid(inputs.to(self.device))
        return {0: reduce(grid) if reduce else grid}

    def grid(self, inputs: torch.Tensor) -> torch.Tensor:
        """Prepared inputs -> (B, T, h, w, D)."""
        raise NotImplementedError

    def describe(self) -> dict:
        return {"floor": type(self).__name__}


class PixelBackbone(Floor):
    """Raw pixels as features.

    Frames are area-averaged to 32 x 32. The linear head reads the whole clip with all positions (images:
    32 x 32 x 3 numbers; clips: 16 x 16 x 3 per frame), the heads on tokens the 8 x 8-pixel patches of all frames.
    """

    name = "pixels"
    side, patch = 32, 8

    @property
    def reads(self) -> object:
        return "pixels"

    def describe_inputs(self) -> dict:
        return {"reads": "pixels", "side": self.side}

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """uint8 (B, T, R, R, 3) -> uint8 (B, T, 32, 32, 3)."""
        frames = torch.as_tensor(frames)
        pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
        small = nn.functional.interpolate(pictures, size=(self.side, self.side), mode="area").round()
        return small.to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])

    def grid(self, inputs: torch.Tensor) -> torch.Tensor:
        cells = self.side // self.patch
        split = inputs.float().div(255).unflatten(3, (cells, -1)).unflatten(2, (cells, -1))
        return split.transpose(3, 4).flatten(4)  # (B, T, row, y, col, x, 3) -> (B, T, row, col, y * x * 3)

    def summarise(self, grid: torch.Tensor, max_tokens: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The flattened clip and all patches; one layer is cheap, so `max_tokens` does not reduce it."""
        pixels = grid.unflatten(4, (self.patch, self.patch, 3))  # (B, T, row, col, y, x, 3)
        if grid.shape[1] > 1:
            pixels = pixels.unflatten(5, (-1, 2)).unflatten(4, (-1, 2)).mean((5, 7))
        return pixels.flatten(1), None if max_tokens is None else grid.flatten(1, 3)


class RandomFilterBackbone(PixelBackbone):
    """2,048 random convolution filters of 6 x 6 pixels on the 32 x 32 frame, rectified and averaged over quadrants.

    The random-weight networks of Coates, Lee and Ng 2011 without their whitening; filters are normal, centred and of
    unit norm, seed 0. A clip's features are the mean over its frames. The linear head reads 4 x 2,048 numbers, the
    heads on tokens four tokens.
    """

    name = "random_filters"
    filters, size = 2048, 6

    def __init__(self, device: torch.device | None = None):
        super().__init__(device)
        weights = torch.randn(self.filters, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        weights -= weights.mean((1, 2, 3), keepdim=True)
        self.weights = (weights / weights.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).to(self.device)

    def grid(self, inputs: torch.Tensor) -> torch.Tensor:
        pictures = inputs.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        made = nn.functional.conv2d(pictures, self.weights).relu()
        quadrants = nn.functional.adaptive_avg_pool2d(made, 2)  # (B * T, 2048, 2, 2)
        return quadrants.permute(0, 2, 3, 1).unflatten(0, inputs.shape[:2])

    def summarise(self, grid: torch.Tensor, max_tokens: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        frame = grid.mean(1)  # (B, 2, 2, 2048)
        return frame.flatten(1), None if max_tokens is None else frame.flatten(1, 2)


class HogBackbone(PixelBackbone):
    """Histograms of oriented gradients (Dalal and Triggs 2005) of the 32 x 32 frame, by scikit-image.

    9 directions, cells of 4 x 4 pixels, blocks of 2 x 2 cells. A clip's features are the mean over its frames.
    """

    name = "hog"
    cell = 4

    def grid(self, inputs: torch.Tensor) -> torch.Tensor:
        try:
            from skimage.feature import hog
        except ImportError as error:
            raise ImportError("--baselines hog needs scikit-image; pip install scikit-image.") from error
        found = [
            hog(frame, 9, (self.cell, self.cell), (2, 2), channel_axis=-1, feature_vector=False)
            for frame in inputs.flatten(0, 1).numpy(force=True)
        ]
        made = torch.as_tensor(np.stack(found), dtype=torch.float32).flatten(3)  # (B * T, rows, columns, 36)
        return made.unflatten(0, inputs.shape[:2])

    def summarise(self, grid: torch.Tensor, max_tokens: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        frame = grid.mean(1)
        return frame.flatten(1), None if max_tokens is None else frame.flatten(1, 2)


class HistogramBackbone(Floor):
    """Frequencies of the visual tokenizer's codes in a clip, without any order.

    Reads the ids that its Toto reads. The heads on tokens read the whole clip as one token.
    """

    name = "histogram"

    def __init__(self, toto, device: torch.device | None = None):
        super().__init__(device)
        self.toto = toto
        self.num_codes, self.offset = toto.processor.num_codes, toto.model.config.code_offset

    @property
    def reads(self) -> object:
        return self.toto.reads

    def describe_inputs(self) -> dict:
        return self.toto.describe_inputs()

    def prepare(self, frames, image: bool = False) -> torch.Tensor:
        return self.toto.prepare(frames, image)

    def grid(self, inputs: torch.Tensor) -> torch.Tensor:
        codes = inputs[:, 1:] - self.offset
        counts = torch.zeros(len(codes), self.num_codes, device=codes.device)
        counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=torch.float32))
        return (counts / codes.shape[1])[:, None, None, None]

    def describe(self) -> dict:
        return super().describe() | {"tokenizer": self.toto.processor.fingerprint}


# name -> function of the probed backbone and a device that makes the baseline
FLOORS = {
    "pixels": lambda backbone, device: PixelBackbone(device),
    "random_filters": lambda backbone, device: RandomFilterBackbone(device),
    "hog": lambda backbone, device: HogBackbone(device),
    "histogram": lambda backbone, device: HistogramBackbone(backbone, device),
}
