"""Label propagation: every cell of a frame takes the labels of the cells before that have similar features."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from evaluation.track.settings import Setting

GROUP = 32  # keys of which only the largest similarity enters the first choice
PAIRS = {"cpu": 2**20}  # pairs of a query and a key at a time: 4 MB stay in a CPU's cache
MANY_PAIRS = 2**26


class Propagator:
    """The labels of one video by one kind of features, frame by frame, in memory that does not grow with the video.

    Args:
        features: of the first frame, (h, w, D). labels: its soft labels, (C, h, w), as `grid_labels` makes them.
    """

    def __init__(self, setting: Setting, features: torch.Tensor, labels: torch.Tensor):
        self.setting = setting
        self.first = unit(features), labels.permute(1, 2, 0).contiguous()  # (h, w, D), (h, w, C)
        h, w, _ = features.shape
        # Slots of frames are between rows and columns, so that a band of rows is one block of memory.
        slots = setting.context_frames + setting.restricts_first
        self.keys, self.labels = (each.new_empty(h, slots, w, each.shape[-1]) for each in self.first)
        self.oldest = int(setting.restricts_first)  # the first frame stays in slot 0
        self.filled = slots if setting.starts_with_copies else self.oldest
        for held, value in zip((self.keys, self.labels), self.first, strict=True):
            held[:, : self.filled] = value[:, None]

    def step(self, features: torch.Tensor) -> torch.Tensor:
        """Soft labels (C, h, w) of the next frame from its features (h, w, D), and remember both."""
        queries = unit(features)
        h, w, _ = queries.shape
        keys, values = self.keys[:, : self.filled], self.labels[:, : self.filled]
        free = () if self.setting.restricts_first else tuple(each.flatten(0, 1) for each in self.first)
        pairs = PAIRS.get(queries.device.type, MANY_PAIRS)
        rows = max(1, min(h, pairs // max(1, w * h * w * (self.filled + bool(free)))))
        found = [self._band(queries, keys, values, free, band) for band in bands(self.setting, h, w, rows, keys.device)]
        labels = torch.cat(found).view(h, w, -1)
        if self.setting.normalises_labels:
            labels = labels / labels.sum(-1, keepdim=True).clamp_min(1e-12)
        self._remember(queries, labels)
        return labels.permute(2, 0, 1)

    def _band(self, queries, keys, values, free: tuple, band: Band) -> torch.Tensor:
        """Labels (n, C) of the n cells of some rows."""
        asked = queries[band.start : band.stop].flatten(0, 1)  # (n, D)
        near, labels = keys[band.low : band.high], values[band.low : band.high].flatten(0, 2)
        size = (len(asked), *near.shape[:3])  # n, rows, slots, columns
        similar = (asked @ near.flatten(0, 2).T).view(size).masked_fill_(band.outside, -math.inf).flatten(1)
        if free:
            similar = torch.cat([similar, asked @ free[0].T], 1)
            labels = torch.cat([labels, free[1]])
        return weighted_labels(similar, labels, self.setting)

    def _remember(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        begin, slots = int(self.setting.restricts_first), self.keys.shape[1]
        if slots == begin:  # no context besides the first frame
            return
        self.keys[:, self.oldest], self.labels[:, self.oldest] = features, labels
        self.filled = max(self.filled, self.oldest + 1)
        self.oldest = self.oldest + 1 if self.oldest + 1 < slots else begin


@dataclass(frozen=True)
class Band:
    """Rows start..stop - 1 of queries, rows low..high - 1 of the keys that they may read.

    outside: bool (n, high - low, 1, w), the keys that a query may not read.
    """

    start: int
    stop: int
    low: int
    high: int
    outside: torch.Tensor


@functools.lru_cache(maxsize=8)
def bands(setting: Setting, h: int, w: int, rows: int, device: torch.device) -> list[Band]:
    """The rows of a grid, `rows` at a time."""
    reach = math.floor(setting.radius)
    found = []
    for start in range(0, h, rows):
        stop = min(h, start + rows)
        low, high = max(0, start - reach), min(h, stop + reach)
        dy = torch.arange(start, stop)[:, None, None, None] - torch.arange(low, high)[:, None]  # (rows, 1, keys, 1)
        dx = torch.arange(w)[:, None, None] - torch.arange(w)  # (w, 1, w)
        away = (dy**2 + dx**2).double().sqrt() if setting.window == "disk" else torch.maximum(dy.abs(), dx.abs())
        outside = away > setting.radius if setting.includes_radius else away >= setting.radius  # (rows, w, keys, w)
        found.append(Band(start, stop, low, high, outside.flatten(0, 1)[:, :, None].to(device)))
    return found


def weighted_labels(similar: torch.Tensor, labels: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Labels (n, C): of the most similar keys of each query, weighted by the softmax of their similarities.

    Args:
        similar: (n, m), -inf for a key that a query may not read. labels: of the keys, (m, C).
    """
    values, places, more = largest(similar, min(setting.top_k, similar.shape[1]))
    weights = (values / setting.temperature).softmax(1)
    found = (weights[..., None] * labels[places]).sum(1)
    if setting.keeps_ties and more.any():
        tied = similar[more]
        logits = tied.masked_fill(tied < values[more].amin(1, keepdim=True), -math.inf) / setting.temperature
        found[more] = logits.softmax(1) @ labels
    return found


def largest(similar: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k largest values of each row, their places, (n, k) each, and whether more values are as large, (n,).

    The k largest values are in the k groups of columns with the largest maxima, so most columns are read only once.
    """
    n, m = similar.shape
    if m % GROUP or m <= GROUP * k:
        values, places = similar.topk(k, 1)
        return values, places, (similar >= values[:, -1:]).sum(1) > k
    groups = similar.view(n, -1, GROUP)
    tops = groups.amax(2)
    chosen = tops.topk(k, 1).indices
    few = groups.gather(1, chosen[..., None].expand(-1, -1, GROUP)).flatten(1)  # (n, k * GROUP)
    values, inside = few.topk(k, 1)
    places = chosen.gather(1, inside // GROUP) * GROUP + inside % GROUP
    last = values[:, -1:]
    return values, places, ((tops >= last).sum(1) > k) | ((few >= last).sum(1) > k)


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features of length 1, float32, so that a product is a cosine. bfloat16 would make ties of close ones."""
    return nn.functional.normalize(features.float(), dim=-1)


def grid_labels(mask: np.ndarray, num_objects: int, size: tuple[int, int], resolution: int, setting: Setting):
    """Soft labels (1 + num_objects, h, w) of a mask of object numbers, uint8 (H, W), channel 0 being the background."""
    h, w = size
    if setting.first_labels == "nearest":
        small = np.asarray(Image.fromarray(mask).resize((w, h), Image.Resampling.NEAREST))
        return _one_hot(small, num_objects)
    large = np.asarray(Image.fromarray(mask).resize((resolution, resolution), Image.Resampling.NEAREST))
    return nn.functional.interpolate(_one_hot(large, num_objects)[None], (h, w), mode="bilinear")[0]


def _one_hot(mask: np.ndarray, num_objects: int) -> torch.Tensor:
    numbers = torch.from_numpy(mask.astype(np.int64))
    return nn.functional.one_hot(numbers, num_objects + 1).permute(2, 0, 1).float()


def decode(labels: torch.Tensor, size: tuple[int, int], resolution: int, setting: Setting) -> np.ndarray:
    """Object numbers uint8 (H, W) at a video's own size from soft labels (C, h, w)."""
    mode = {"mode": "bilinear"} if setting.decode == "bilinear" else {"mode": "nearest-exact"}
    large = nn.functional.interpolate(labels[None], (resolution, resolution), **mode)[0]
    if setting.min_max:
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        # As DINO's code, which leaves a map of zeros as it is; a constant map, which it turns to nan, becomes zero.
        large = (large - low) / (high - low).clamp_min(1e-12)
    numbers = large.argmax(0).to(torch.uint8).cpu().numpy()
    return np.asarray(Image.fromarray(numbers).resize((size[1], size[0]), Image.Resampling.NEAREST))
