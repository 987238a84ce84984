"""The only code that runs a frozen backbone: clips in, a grid of token features for every asked layer out.

The contract, for every backbone:

- in: clips, uint8 frames (B, T, R, R, 3); an image is a clip with T = 1. `prepare` does once what the trained and the
  untrained twin share (tokenising, mostly).
- out: for each layer a grid (B, T, h, w, D), float32. Layer k is the residual stream after block k, layer 0 the
  embeddings; the deepest one is taken before the model's final norm. Each token then gets layer normalisation without
  parameters. Start, end, class and padding tokens are not part of the grid.
- eval mode, inference mode; bfloat16 autocast where the hardware gains from it; blocks above the deepest asked layer
  do not run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from modeling_toto.pooling_toto import normalise
from training.device import fast_autocast

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Features:
    """What the heads need of N clips, for L layers.

    layers: the layer numbers, in the order of the first axis below.
    pooled: one vector a clip for the linear head, float32 (L, N, P): the mean token (raw pixels: the whole clip).
    tokens: for the attention head, float16 (L, N, n, D), n small; None when it was not asked for.
    """

    layers: list[int]
    pooled: torch.Tensor
    tokens: torch.Tensor | None


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pooled_size(grid: tuple[int, int, int], max_tokens: int) -> tuple[int, int, int]:
    """Shape (t, h, w) of a grid reduced to at most `max_tokens` cells by halving its longest axis again and again."""
    size = list(grid)
    while math.prod(size) > max_tokens:
        longest = size.index(max(size))
        size[longest] = math.ceil(size[longest] / 2)
    return tuple(size)


def pooling_matrix(grid: tuple[int, int, int], size: tuple[int, int, int]) -> torch.Tensor:
    """(t * h * w, T * H * W): averages a flattened grid to `size`, as adaptive average pooling does."""
    matrix = torch.ones(1, 1)
    for length, cells in zip(grid, size, strict=True):
        axis = torch.zeros(cells, length)
        for cell in range(cells):
            start, stop = cell * length // cells, -(-(cell + 1) * length // cells)
            axis[cell, start:stop] = 1 / (stop - start)
        matrix = torch.kron(matrix, axis)
    return matrix


class Backbone:
    """What all adapters share. `depth` is the number of the deepest layer, `name` what tables call it."""

    name: str
    depth: int
    device: torch.device

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """uint8 frames (B, T, R, R, 3), pictures (T = 1) or clips -> what `grids` takes, one row a clip, on the CPU."""
        raise NotImplementedError

    def grids(self, inputs: torch.Tensor, layers: list[int], reduce: Callable | None = None) -> dict:
        """{layer: grid (B, T, h, w, D)}, or {layer: reduce(grid)}, applied before the next layer is computed."""
        raise NotImplementedError

    def untrained(self, seed: int) -> "Backbone":
        """The same architecture with fresh random weights; reads the same prepared inputs."""
        raise NotImplementedError

    def summarise(self, grid: torch.Tensor, max_tokens: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """grid (B, T, h, w, D) -> mean token (B, D) and the grid averaged to at most `max_tokens` tokens (B, n, D)."""
        tokens = grid.flatten(1, 3)
        if max_tokens is None:
            return tokens.mean(1), None
        shape = tuple(grid.shape[1:4])
        size = pooled_size(shape, max_tokens)
        if size != shape:
            tokens = pooling_matrix(shape, size).to(grid) @ tokens
        return grid.flatten(1, 3).mean(1), tokens

    def check_layers(self, layers: list[int]) -> None:
        """Raises ValueError for a layer that the model does not have."""
        unknown = [k for k in layers if not 0 <= k <= self.depth]
        if unknown:
            raise ValueError(f"{self.name} has layers 0 (embeddings) to {self.depth}, not {unknown[0]}.")


class TotoBackbone(Backbone):
    """A Toto model (`TotoModel` or `TotoForCausalLM`) and the processor that makes its ids.

    Rows are start + codes; there is no end token, since no code can see it.
    """

    def __init__(self, model: nn.Module, processor, name: str = "toto", device: torch.device | None = None):
        self.device = device or default_device()
        self.model = getattr(model, "model", model).eval().to(self.device)
        self.processor = processor
        self.name = name
        self.depth = len(self.model.layers)
        self.grid = tuple(self.model.config.grid_size)
        if tuple(processor.grid) != self.grid or processor.num_codes > self.model.config.num_codes:
            raise ValueError(
                f"The model reads frames of {self.grid} with {self.model.config.num_codes} codes, but its processor "
                f"makes {tuple(processor.grid)} with {processor.num_codes}; load both from the same checkpoint."
            )

    @classmethod
    def from_pretrained(cls, path: str, device: torch.device | None = None, **changes) -> "TotoBackbone":
        """Model and processor from one folder or Hub repository, weights in float32; config fields may be changed."""
        from modeling_toto import TotoModel
        from tokenization.processing_toto import TotoProcessor

        model = TotoModel.from_pretrained(path, dtype=torch.float32, **changes)
        return cls(model, TotoProcessor.from_pretrained(path), name=str(path), device=device)

    @property
    def resolution(self) -> int:
        return self.processor.resolution

    @property
    def num_frames(self) -> int:
        return self.model.config.num_frames

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """uint8 (B, T, R, R, 3) -> ids (B, 1 + T * h * w); `image` makes image rows, whose start differs (T = 1)."""
        from tokenization.sequences import image_rows, video_rows

        frames = torch.as_tensor(frames)
        batch, time = frames.shape[:2]
        length, limit = 1 + time * math.prod(self.grid), self.model.config.max_position_embeddings
        if length > limit:
            most = (limit - 1) // math.prod(self.grid)
            raise ValueError(
                f"{self.name} reads at most {most} frames and clips have {time}; pass --num_frames {most}."
            )
        codes = self.processor.encode_frames(frames.flatten(0, 1)).cpu()
        codes = codes.view(batch, time, *self.grid)
        return image_rows(codes[:, 0], end=False) if image else video_rows(codes, end=False)

    @torch.inference_mode()
    def grids(self, inputs: torch.Tensor, layers: list[int], reduce: Callable | None = None) -> dict:
        self.check_layers(layers)
        found, deepest = {}, max(layers)

        def keep(layer: int, hidden: torch.Tensor) -> None:
            grid = normalise(hidden[:, 1:]).unflatten(1, (-1, *self.grid))  # without the start token
            found[layer] = reduce(grid) if reduce else grid

        # What enters block k (counted from 0) has passed k blocks: that is layer k.
        hooks = [
            self.model.layers[k].register_forward_pre_hook(lambda _, args, k=k: keep(k, args[0]))
            for k in set(layers) - {deepest}
        ]
        try:
            with fast_autocast(self.device):
                out = self.model(input_ids=inputs.to(self.device), exit_layer=deepest, use_cache=False)
            keep(deepest, out.last_hidden_state)
        finally:
            for hook in hooks:
                hook.remove()
        return {k: found[k] for k in layers}

    def untrained(self, seed: int) -> "TotoBackbone":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = type(self.model)(self.model.config)
        return TotoBackbone(model, self.processor, name=f"untrained (seed {seed})", device=self.device)


class PixelBackbone(Backbone):
    """Raw pixels as features: the floor that a trained backbone has to clear. It has one layer, 0.

    Frames are area-averaged to 32 x 32. The linear head gets the whole clip with every position kept (images:
    32 x 32 x 3 numbers; clips: 16 x 16 x 3 a frame), the attention head the 8 x 8-pixel patches of all frames.
    Brightness is information here, so tokens are not normalised.
    """

    name = "pixels"
    depth = 0
    side, patch = 32, 8

    def __init__(self, device: torch.device | None = None):
        self.device = device or default_device()

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """uint8 (B, T, R, R, 3) -> uint8 (B, T, 32, 32, 3)."""
        frames = torch.as_tensor(frames)
        pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
        small = nn.functional.interpolate(pictures, size=(self.side, self.side), mode="area").round()
        return small.to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])

    def grids(self, inputs: torch.Tensor, layers: list[int], reduce: Callable | None = None) -> dict:
        self.check_layers(layers)
        cells = self.side // self.patch
        split = inputs.to(self.device).float().div(255).unflatten(3, (cells, -1)).unflatten(2, (cells, -1))
        grid = split.transpose(3, 4).flatten(4)  # (B, T, row, y, col, x, 3) -> (B, T, row, col, y * x * 3)
        return {0: reduce(grid) if reduce else grid}

    def summarise(self, grid: torch.Tensor, max_tokens: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The clip flattened, and all patches: one layer is cheap, so `max_tokens` does not cut it."""
        pixels = grid.unflatten(4, (self.patch, self.patch, 3))  # (B, T, row, col, y, x, 3)
        if grid.shape[1] > 1:
            pixels = pixels.unflatten(5, (-1, 2)).unflatten(4, (-1, 2)).mean((5, 7))
        return pixels.flatten(1), None if max_tokens is None else grid.flatten(1, 3)


class ImageBackbone(Backbone):
    """Any transformers vision model whose hidden states are patch tokens (ViT, DINO, DINOv2, BEiT, ...).

    Frames of a clip are read one by one. Class and register tokens, which come first, are left out.
    """

    num_frames = 16

    def __init__(self, model: nn.Module, processor=None, name: str = "model", device: torch.device | None = None):
        self.device = device or default_device()
        self.model = model.eval().to(self.device)
        # transformers then keeps the deepest layer before the final norm, like the others
        self.model.config.tie_last_hidden_states = False
        self.processor = processor
        self.name = name
        config = model.config
        if not hasattr(config, "num_hidden_layers") or not hasattr(config, "patch_size"):
            raise ValueError(
                f"{name} ({config.model_type}) has no layers of patch tokens; use Toto or a ViT-like model."
            )
        self.depth = config.num_hidden_layers
        size = config.image_size
        self.resolution = size if isinstance(size, int) else size[0]

    @classmethod
    def from_pretrained(cls, path: str, device: torch.device | None = None) -> "ImageBackbone":
        """Model and image processor from one folder or Hub repository, weights in float32."""
        from transformers import AutoImageProcessor, AutoModel

        model = AutoModel.from_pretrained(path, dtype=torch.float32)
        try:
            processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        except (OSError, ValueError):  # no preprocessor file: plain resizing and ImageNet's statistics
            processor = None
        return cls(model, processor, name=str(path), device=device)

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """The frames stay as they are: uint8 (B, T, R, R, 3)."""
        return torch.as_tensor(frames)

    def _pixel_values(self, frames: torch.Tensor) -> torch.Tensor:
        if self.processor is not None:
            pictures = list(frames.numpy())
            return self.processor(images=pictures, return_tensors="pt", input_data_format="channels_last").pixel_values
        pictures = frames.permute(0, 3, 1, 2).float() / 255
        if pictures.shape[-1] != self.resolution:
            pictures = nn.functional.interpolate(pictures, size=(self.resolution,) * 2, mode="bicubic", antialias=True)
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        return (pictures - mean) / std

    @torch.inference_mode()
    def grids(self, inputs: torch.Tensor, layers: list[int], reduce: Callable | None = None) -> dict:
        self.check_layers(layers)
        batch, time = inputs.shape[:2]
        pixels = self._pixel_values(inputs.flatten(0, 1)).to(self.device)
        patch = self.model.config.patch_size
        rows, columns = (side // p for side, p in zip(pixels.shape[-2:], (patch, patch), strict=True))
        with fast_autocast(self.device):
            states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        found = {}
        for layer in layers:
            if states[layer].ndim != 3 or states[layer].shape[1] < rows * columns:
                raise ValueError(f"{self.name} does not give {rows} x {columns} patch tokens at layer {layer}.")
            grid = normalise(states[layer][:, -rows * columns :]).view(batch, time, rows, columns, -1)
            found[layer] = reduce(grid) if reduce else grid
        return found

    def untrained(self, seed: int) -> "ImageBackbone":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = type(self.model)(self.model.config)
        return ImageBackbone(model, self.processor, name=f"untrained (seed {seed})", device=self.device)


def load_backbone(
    path: str, device: torch.device | None = None, rope_base: float | None = None
) -> TotoBackbone | ImageBackbone:
    """A frozen backbone from a folder or Hub id: Toto, or any ViT-like model that transformers knows.

    rope_base: another RoPE base than a Toto was trained with: a control for training after the change (paper Table 4).
    Raises ValueError for a `rope_base` of any other model.
    """
    from transformers import AutoConfig

    import modeling_toto  # noqa: F401  (AutoConfig then knows "toto")

    is_toto = AutoConfig.from_pretrained(path).model_type == "toto"
    if rope_base is None:
        return (TotoBackbone if is_toto else ImageBackbone).from_pretrained(path, device)
    if not is_toto:
        raise ValueError(f"{path} is no Toto, so it has no RoPE base to change; leave --rope_base out.")
    return TotoBackbone.from_pretrained(path, device, rope_theta=rope_base)


def extract(
    backbone: Backbone,
    inputs: torch.Tensor,
    layers: list[int] | None = None,
    max_tokens: int | None = 64,
    batch_size: int = 16,
    progress: bool = False,
) -> Features:
    """Run the backbone once over prepared inputs (N, ...) and keep what the heads need of every asked layer.

    layers: None for all. max_tokens: tokens kept for the attention head; None keeps none.
    """
    layers = list(range(backbone.depth + 1)) if layers is None else list(layers)
    pooled = tokens = None
    bar = tqdm(total=len(inputs), unit="clip", desc=f"features of {backbone.name}"[-60:], disable=not progress)
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        summaries = backbone.grids(batch, layers, lambda grid: backbone.summarise(grid, max_tokens))
        for row, layer in enumerate(layers):
            vector, few = summaries[layer]
            if pooled is None:
                pooled = torch.empty(len(layers), len(inputs), vector.shape[1])
                tokens = None if few is None else torch.empty(len(layers), len(inputs), *few.shape[1:]).half()
            pooled[row, start : start + len(batch)] = vector.cpu()
            if few is not None:
                tokens[row, start : start + len(batch)] = few.cpu()
        bar.update(len(batch))
    bar.close()
    return Features(layers, pooled, tokens)
