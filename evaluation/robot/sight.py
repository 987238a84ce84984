"""What a policy sees of a frame: the frozen features of a layer, small pixels, or nothing.

Frames of stored episodes and of a running robot pass through the same `see`, one frame of every stream at a time, so
that a policy acts on the numbers that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Protocol

import numpy as np
import torch

from evaluation.backbones.contract import Backbone
from evaluation.backbones.load import load_backbone
from evaluation.backbones.toto import TotoBackbone
from evaluation.robot.observations import Episode
from tokenization.image_processing_toto import resize_and_crop
from tokenization.sequences import video_rows
from tokenization.terminal.progress import tqdm
from training.flags import require

# What a policy sees besides its state, by arm; "vision:NAME" is "toto" with the model NAME.
ARMS = {
    "toto": "frozen features of a layer of --model",
    "untrained": "frozen features of a layer of the same architecture with random weights",
    "pixels": "the frame at 64 pixels, read by a small CNN that is trained with the policy",
    "proprio": "nothing: proprioception only",
    "oracle": "in place of the frame, the simulator's own numbers with objects and goal",
}
VISION = "vision:"
PIXEL_SIDE = 64
STREAMS = 16  # episodes that are read side by side


class Sight(Protocol):
    """What a policy sees of the frames of B streams, which start anew after `reset`.

    size: numbers per frame. resolution: side in pixels of the frames that it reads; others are resized; None: it reads
    none. layer: of the backbone, or None.
    """

    size: int
    resolution: int | None
    layer: int | None

    def reset(self) -> None:
        """Forget all frames: the next ones start new streams, of which there may be another number."""

    def see(self, images: np.ndarray) -> torch.Tensor:
        """The next frame of every stream, uint8 (B, H, W, 3) -> (B, size), on the CPU; float32, or uint8 of pixels."""

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these streams only; the others have ended."""


class Blind:
    """Sees nothing: the arms of proprioception and of the simulator's numbers."""

    size, resolution, layer = 0, None, None

    def reset(self) -> None: ...

    def keep(self, rows: Sequence[int]) -> None: ...

    def see(self, images: np.ndarray) -> torch.Tensor:
        return torch.zeros(len(images), 0)


class Pixels:
    """The frame at 64 x 64 pixels, flattened: what the CNN of `policy.Network` reads."""

    size, resolution, layer = PIXEL_SIDE**2 * 3, PIXEL_SIDE, None

    def reset(self) -> None: ...

    def keep(self, rows: Sequence[int]) -> None: ...

    def see(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(fitted(images, PIXEL_SIDE))).flatten(1)


class Frozen:
    """The newest frame's features of one layer, averaged to at most `max_tokens` tokens and flattened.

    A Toto reads the row of the last `context_frames` frames of the stream (fewer at its start) and nothing before
    them; each frame is tokenized once. Other backbones read each frame alone.

    Args:
        layer: None until it is chosen (`at`); `see_layers` needs none.
    Raises:
        ValueError: a layer that the backbone does not have, or a context that it cannot read.
    """

    def __init__(self, backbone: Backbone, layer: int | None, context_frames: int = 1, max_tokens: int = 16):
        is_toto = isinstance(backbone, TotoBackbone)
        if not is_toto and context_frames > 1:
            raise ValueError(
                f"--context_frames {context_frames} needs a Toto, and {backbone.name} is none; leave it out."
            )
        if is_toto and context_frames > (most := backbone.model.config.context_frames):
            raise ValueError(f"--context_frames is {context_frames}; {backbone.name} reads at most {most} frames.")
        if layer is not None:
            backbone.check_layers([layer])
        self.backbone, self.layer, self.is_toto = backbone, layer, is_toto
        self.context_frames, self.max_tokens = context_frames, max_tokens
        self.resolution = backbone.resolution
        self.reset()
        self.size = 0 if layer is None else self._size()

    def _size(self) -> int:
        black = np.zeros((1, self.resolution, self.resolution, 3), np.uint8)
        size = self.see(black).shape[1]
        self.reset()
        return size

    def at(self, layer: int) -> Frozen:
        """The same sight at a layer."""
        return Frozen(self.backbone, layer, self.context_frames, self.max_tokens)

    def reset(self) -> None:
        self.codes: list[torch.Tensor] = []  # of the last frames, (B, h, w) each

    def keep(self, rows: Sequence[int]) -> None:
        self.codes = [codes[list(rows)] for codes in self.codes]

    def see(self, images: np.ndarray) -> torch.Tensor:
        return self.see_layers(images, [self.layer])[self.layer]

    def see_layers(self, images: np.ndarray, layers: list[int]) -> dict[int, torch.Tensor]:
        """As `see`, {layer: float32 (B, size)} from one pass."""
        found = self.backbone.grids(self._inputs(fitted(images, self.resolution)), layers, self._summary)
        # a copy that autograd may keep, as tensors of inference mode may not be
        return {layer: made.clone() for layer, made in found.items()}

    def _inputs(self, images: np.ndarray) -> torch.Tensor:
        if not self.is_toto:
            return self.backbone.prepare(images[:, None], image=True)
        if self.codes and len(self.codes[0]) != len(images):
            raise ValueError(
                f"There are {len(self.codes[0])} streams and {len(images)} frames; pass one of each, or reset() first."
            )
        codes = self.backbone.processor.encode_frames(torch.from_numpy(np.array(images))).cpu()
        codes = codes.view(len(images), *self.backbone.grid)
        self.codes = [*self.codes, codes][-self.context_frames :]
        return video_rows(torch.stack(self.codes, dim=1), end=False)

    def _summary(self, grid: torch.Tensor) -> torch.Tensor:
        return self.backbone.summarise(grid[:, -1:], self.max_tokens)[1].flatten(1).float().cpu()


def fitted(images: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 frames (B, H, W, 3) -> (B, R, R, 3), resized and cropped as clips are (`resize_and_crop`).

    Raises:
        ValueError: another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise ValueError(
            f"images is {images.dtype} {tuple(images.shape)}; pass one uint8 RGB frame of every stream, (B, H, W, 3)."
        )
    if images.shape[1:3] == (resolution, resolution):
        return images
    return np.stack([resize_and_crop(image, resolution) for image in images])


def open_sight(
    arm: str,
    model: str | None = None,
    layer: int | None = None,
    *,
    context_frames: int = 1,
    max_tokens: int = 16,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Sight:
    """The sight of an arm of `ARMS`.

    Args:
        model: as `load_backbone` takes it; for "vision:NAME" it is NAME.
        layer: None: to be chosen later (`Frozen.at`).
        seed: of the random weights of "untrained".
    Raises:
        FileNotFoundError: there is no such model.
        ValueError: an unknown arm, or settings that the backbone does not fit (`Frozen`).
    """
    if arm in ("proprio", "oracle"):
        return Blind()
    if arm == "pixels":
        return Pixels()
    if arm.startswith(VISION):
        arm, model = "toto", model_of(arm, model)
    require(arm in ARMS, f"There is no arm '{arm}'; choose from {', '.join(ARMS)} or {VISION}MODEL.")
    require(model is not None, f"The arm {arm} needs --model MODEL; name a Toto or any vision model.")
    backbone = load_backbone(model, device)
    if arm == "untrained":
        backbone = backbone.untrained(seed)
    return Frozen(backbone, layer, context_frames, max_tokens)


def model_of(arm: str, model: str | None) -> str | None:
    """The model that an arm reads: NAME of "vision:NAME", else `model`."""
    return arm.removeprefix(VISION) if arm.startswith(VISION) else model


def watch(
    sight: Sight, episodes: Sequence[Episode], *, streams: int = STREAMS, bar: tqdm | None = None
) -> list[torch.Tensor]:
    """What a sight sees of each episode: (T, size).

    Args:
        streams: episodes side by side, one frame of each per call; an episode that ends leaves the batch.
        bar: counts frames.
    """
    return _watch(sight, sight.see, episodes, streams, bar)


def watch_layers(
    sight: Frozen, episodes: Sequence[Episode], layers: list[int], *, streams: int = STREAMS, bar: tqdm | None = None
) -> dict[int, list[torch.Tensor]]:
    """As `watch`, for several layers from one pass: {layer: [(T, size)]}."""
    made = _watch(sight, lambda images: _stacked(sight.see_layers(images, layers)), episodes, streams, bar)
    widths = _widths(sight, layers)
    split = [torch.split(seen, widths, dim=1) for seen in made]
    return {layer: [parts[k].contiguous() for parts in split] for k, layer in enumerate(layers)}


def _stacked(found: dict[int, torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(found.values()), dim=1)


def _widths(sight: Frozen, layers: list[int]) -> list[int]:
    black = np.zeros((1, sight.resolution, sight.resolution, 3), np.uint8)
    sight.reset()
    widths = [seen.shape[1] for seen in sight.see_layers(black, layers).values()]
    sight.reset()
    return widths


def _watch(
    sight: Sight,
    look: Callable[[np.ndarray], torch.Tensor],
    episodes: Sequence[Episode],
    streams: int,
    bar: tqdm | None,
) -> list[torch.Tensor]:
    found: list[list[torch.Tensor]] = [[] for _ in episodes]
    with bar or nullcontext():
        for first in range(0, len(episodes), streams):
            group = range(first, min(first + streams, len(episodes)))
            for rows, images in _in_step(sight, [episodes[k] for k in group]):
                for row, seen in zip(rows, look(images), strict=True):
                    found[first + row].append(seen)
                if bar is not None:
                    bar.update(len(rows))
    sight.reset()
    return [torch.stack(seen) for seen in found]


def _in_step(sight: Sight, episodes: list[Episode]) -> Iterator[tuple[list[int], np.ndarray]]:
    """(which episodes, their frames t (B, R, R, 3)) for t = 0, 1, ...; the sight drops those that have ended."""
    sight.reset()
    rows = list(range(len(episodes)))
    for t in range(max(len(episode.images) for episode in episodes)):
        going = [row for row in rows if t < len(episodes[row].images)]
        if len(going) < len(rows):
            sight.keep([rows.index(row) for row in going])
            rows = going
        yield rows, np.stack([episodes[row].images[t] for row in rows])
