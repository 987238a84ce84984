"""Features without learning: a frame's raw pixels, and the place of a cell."""

from __future__ import annotations

import math

import numpy as np
import torch

PATCH = 8  # pixels
WAVES = 16  # per axis


def raw_patches(frame: np.ndarray, cells: int) -> torch.Tensor:
    """Pixels of patches of 8 x 8 as features (R / 8, R / 8, 192) of a frame, uint8 (R, R, 3), from -1 to 1.

    Cosines of colours from 0 to 1 would be close to 1 for all patches. cells: along a side of the model's grid; its
    patches are taken if R is no multiple of 8.
    """
    side = frame.shape[0]
    if side % PATCH == 0:
        cells = side // PATCH
    patch = side // cells
    pixels = torch.from_numpy(frame[: cells * patch, : cells * patch].astype(np.float32)) / 127.5 - 1
    return pixels.view(cells, patch, cells, patch, 3).transpose(1, 2).flatten(2)


def places(h: int, w: int) -> torch.Tensor:
    """Features (h, w, 4 * WAVES) of which the cosine falls with the distance of two cells and nothing else."""
    waves = math.pi / (2 * max(h, w)) * torch.arange(1, WAVES + 1)  # the slowest is half a period over twice the grid
    y, x = (torch.arange(length)[:, None] * waves for length in (h, w))
    rows, columns = (torch.cat([each.sin(), each.cos()], 1) for each in (y, x))
    return torch.cat([rows[:, None].expand(-1, w, -1), columns[None].expand(h, -1, -1)], 2)
