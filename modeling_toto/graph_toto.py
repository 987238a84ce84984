"""Decoding with keys of a few fixed lengths, so that a GPU replays a recorded step instead of launching its kernels.

At small batches a GPU needs more time to launch the kernels of a step, some twenty per block, than to run them. A CUDA
graph launches all at once, but its shapes are fixed: every step reads as many places of the cache as the next power of
two, and a mask hides those that are empty. Thus there are few graphs to record, and attention back-ends that prepare a
plan for each length of the keys (cuDNN) prepare few.
"""

import torch
from torch import nn
from transformers import DynamicCache

from .decoding_toto import FrameWindow, window_size
from .parallel_toto import WindowStep

# The fewest places of the cache that a step reads. Rooms are multiples of ROUND, as kernels for masked keys prefer.
SHORTEST, ROUND = 512, 64


def key_length(seen: int, room: int) -> int:
    """Number of places that a step reads to attend to the first `seen`: a power of two from SHORTEST on, or `room`."""
    return min(room, max(SHORTEST, 1 << (seen - 1).bit_length()))


def record(call, device: torch.device):
    """A CUDA graph of `call`, which takes no arguments and must not wait for the device: (its replay, its result).

    Every replay computes on what is then in the memory that `call` reads, and overwrites the result.
    """
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()  # libraries choose kernels and take memory in their first calls
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
            result = call()
    return graph.replay, result


class StaticStep(WindowStep):
    """`DecodeStep` with keys of a few lengths: recorded once per length and replayed on CUDA, called elsewhere."""

    def __init__(self, model: nn.Module, cache: DynamicCache):
        super().__init__(model, cache, width=1)
        rows, self.device = cache.layers[0].key_room.shape[0], model.device
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
        self.first = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.recorded = {}  # key length -> what `record` returned

    @torch.no_grad()
    def __call__(self, ids: torch.LongTensor) -> torch.Tensor:
        """Append ids (B,) to the cache and return the logits of the next codes, (B, num_codes)."""
        layers = self.cache.layers
        seen = layers[0].length + 1
        length = key_length(seen, layers[0].room)
        self.ids.copy_(ids[:, None])
        self.first.fill_(seen - 1)
        if self.device.type == "cuda":
            if length not in self.recorded:
                self.recorded[length] = record(lambda: self.forward(self, self.ids, self.first, length), self.device)
            replay, result = self.recorded[length]
            replay()
            result = result.clone()  # the next replay overwrites it
        else:
            result = self.forward(self, self.ids, self.first, length)
        for layer in layers:
            layer.length = seen  # without new views of keys and values, which nothing reads before the next `update`
        return result[:, 0]


class StaticWindow(FrameWindow):
    """A `FrameWindow` that decodes by `StaticStep`."""

    def __init__(
        self, model: nn.Module, ids: torch.LongTensor, drop_frames: int | None = None, recompute: bool = False
    ):
        room = -(-window_size(model.config, ids.shape[1]) // ROUND) * ROUND
        super().__init__(model, ids, drop_frames, recompute, room=room)

    def make_step(self) -> StaticStep:
        return StaticStep(self.model, self.cache)


__all__ = ["StaticWindow"]
