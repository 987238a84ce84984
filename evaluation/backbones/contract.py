"""The interface of frozen backbones: clips in, a grid of token features for each requested layer out.

Every backbone follows the same contract:

- in: clips, uint8 frames (B, T, R, R, 3), R = `resolution`; an image is a clip with T = 1. `prepare` runs once for the
  steps that the trained model and its untrained twin share (mostly tokenising).
- out: for each layer a grid (B, T', h, w, D), float32; T' = T, or less if a model merges several frames. Layer k is the
  residual stream after block k, and layer 0 the embeddings that enter the first block; the deepest one is taken before
  the model's final norm (the paper's "9th layer" is k = 9). Layer normalisation without parameters is applied to each
  token. Start, end, class, register and padding tokens are not part of the grid.
- eval mode, inference mode; bfloat16 autocast where it is faster; blocks above the deepest requested layer do not run.

Only this file runs a frozen backbone; the other files here have the models, and `extraction.py` stores their features.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from modeling_toto.pooling_toto import normalise
from training.engine.device import fast_autocast


@dataclass
class Features:
    """Features of N clips for the heads, from L layers of the same width.

    layers: the layer numbers, in the order of the first axis below.
    pooled: one vector per clip for the linear head, float32 (L, N, P): the mean token (raw pixels: the whole clip).
    tokens: for the heads on tokens, float16 (L, N, n, D), n small; None if not requested.

    Both may be memory-mapped, so read them by rows.
    """

    layers: list[int]
    pooled: torch.Tensor
    tokens: torch.Tensor | None

    def take(self, rows: torch.Tensor) -> "Features":
        """Features of some of the clips, by their numbers."""
        tokens = None if self.tokens is None else self.tokens[:, rows]
        return Features(self.layers, self.pooled[:, rows], tokens)

    @staticmethod
    def joined(a: "Features", b: "Features") -> "Features":
        """The clips of `a`, then those of `b`."""
        tokens = None if a.tokens is None else torch.cat([a.tokens, b.tokens], 1)
        return Features(a.layers, torch.cat([a.pooled, b.pooled], 1), tokens)


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pooled_size(grid: tuple[int, int, int], max_tokens: int) -> tuple[int, int, int]:
    """Shape (t, h, w) of a grid reduced to at most `max_tokens` cells by repeatedly halving its longest axis."""
    size = list(grid)
    while math.prod(size) > max_tokens:
        longest = size.index(max(size))
        size[longest] = math.ceil(size[longest] / 2)
    return tuple(size)


def pooling_matrix(grid: tuple[int, int, int], size: tuple[int, int, int]) -> torch.Tensor:
    """The matrix (t * h * w, T * H * W) that averages a flattened grid to `size`, like adaptive average pooling."""
    matrix = torch.ones(1, 1)
    for length, cells in zip(grid, size, strict=True):
        axis = torch.zeros(cells, length)
        for cell in range(cells):
            start, stop = cell * length // cells, -(-(cell + 1) * length // cells)
            axis[cell, start:stop] = 1 / (stop - start)
        matrix = torch.kron(matrix, axis)
    return matrix


class _Enough(Exception):
    """Raised inside a forward pass after the deepest requested layer, so that the blocks above do not run."""


def residual_streams(blocks: list[nn.Module], layers: list[int], forward: Callable[[], object], keep: Callable) -> None:
    """Runs `forward()` and calls keep(k, hidden) with the residual stream (B, N, D) of each requested layer k.

    Layer k is the input of blocks[k], after k blocks have run; the last layer is the output of the last block.
    """
    deepest = max(layers)

    def entering(k: int):
        def hook(_, args, kwargs):
            keep(k, args[0] if args else kwargs["hidden_states"])
            if k == deepest:
                raise _Enough

        return blocks[k].register_forward_pre_hook(hook, with_kwargs=True)

    def leaving(_module, _args, output):
        keep(len(blocks), output[0] if isinstance(output, tuple) else output)
        raise _Enough

    hooks = [entering(k) for k in sorted(set(layers)) if k < len(blocks)]
    if deepest == len(blocks):
        hooks.append(blocks[-1].register_forward_hook(leaving))
    try:
        forward()
    except _Enough:
        return
    finally:
        for hook in hooks:
            hook.remove()
    raise RuntimeError("The model's forward pass did not run its blocks.")


class Backbone:
    """Base class of all adapters.

    name: its name in tables. model: the frozen module. blocks: its transformer blocks in order. resolution: side of the
    square frames that it reads, in pixels. num_frames: default number of frames per clip. reads: backbones with equal
    values take the same prepared inputs.
    """

    name: str
    model: nn.Module
    blocks: list[nn.Module]
    device: torch.device
    resolution: int
    num_frames: int = 16

    @property
    def depth(self) -> int:
        """Number of the deepest layer."""
        return len(self.blocks)

    @property
    def reads(self) -> object:
        return "frames"

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """uint8 frames (B, T, R, R, 3), images (T = 1) or clips -> input of `grids`, a row per clip, on the CPU."""
        return torch.as_tensor(frames)

    def describe_inputs(self) -> dict:
        """Everything that determines the output of `prepare` apart from the frames."""
        return {"reads": "frames", "resolution": self.resolution}

    def forward(self, inputs: torch.Tensor) -> tuple[Callable[[], object], Callable]:
        """(function that runs the model on prepared inputs, to_grid(k, hidden (*, N, D)) -> (B, T', h, w, D))."""
        raise NotImplementedError

    @torch.inference_mode()
    def grids(self, inputs: torch.Tensor, layers: list[int], reduce: Callable | None = None) -> dict:
        """{layer: grid (B, T', h, w, D)}, or {layer: reduce(grid)}, applied before the next layer is computed.

        Raises:
            ValueError: a layer that the model does not have.
        """
        self.check_layers(layers)
        found = {}
        run, to_grid = self.forward(inputs)

        def keep(layer: int, hidden: torch.Tensor) -> None:
            grid = normalise(to_grid(layer, hidden))
            found[layer] = reduce(grid) if reduce else grid

        with fast_autocast(self.device):
            residual_streams(self.blocks, layers, run, keep)
        return {k: found[k] for k in layers}

    def untrained(self, seed: int) -> "Backbone":
        """The same architecture with new random weights, for the same prepared inputs."""
        raise NotImplementedError

    def summarise(self, grid: torch.Tensor, max_tokens: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Grid (B, T, h, w, D) -> mean token (B, D) and the grid averaged to at most `max_tokens` tokens (B, n, D)."""
        tokens = grid.flatten(1, 3)
        mean = tokens.mean(1)
        if max_tokens is None:
            return mean, None
        shape = tuple(grid.shape[1:4])
        size = pooled_size(shape, max_tokens)
        if size != shape:
            tokens = pooling_matrix(shape, size).to(grid) @ tokens
        return mean, tokens

    def check_layers(self, layers: list[int]) -> None:
        """Raises ValueError for a layer that the model does not have."""
        unknown = [k for k in layers if not 0 <= k <= self.depth]
        if unknown:
            raise ValueError(f"{self.name} has layers 0 (embeddings) to {self.depth}, not {unknown[0]}; see --layers.")

    def fingerprint(self) -> str:
        """A hash of the weights, the config and the preparation of inputs; if equal, features are equal."""
        return self._fingerprint(json.dumps(self.describe(), sort_keys=True, default=str))

    def weights_fingerprint(self) -> str:
        """A hash of the weights and the visual tokenizer alone; it stays when a library adds a field to the config."""
        return self._fingerprint(str(self.describe().get("tokenizer")))

    def _fingerprint(self, facts: str) -> str:
        digest = hashlib.sha256(facts.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def describe(self) -> dict:
        """Everything that determines the features apart from the weights."""
        return {"config": self.model.config.to_dict(), "resolution": self.resolution}


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same class and config with weights drawn from `seed`; global generators are not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config).eval()
