"""Parallel decoding without training: several ids per row in one forward, kept as far as they are what would be drawn.

Jacobi decoding (Santilli et al., 2023) evaluates a window of drafts at once. The ids that the model draws after them
confirm the drafts up to the first difference, correct that one, and are the drafts of the next forward. Each forward
gives a row at least one id.

For temperatures above 0, Teng et al. (2024, "Accelerating auto-regressive text-to-image generation with training-free
speculative Jacobi decoding") draw anew in every forward and accept by a ratio of probabilities. Here the noise of a
place is drawn once (`noise_of_draws`) and kept over all forwards, so that its id is a function of the ids before it.
Then the rule of temperature 0 is exact at every temperature: an id is kept only if ordinary decoding with the same
noise draws it. Drafts also settle, where drawing anew disturbs them.
"""

import functools

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from .decoding_toto import DecodeStep, FrameWindow, window_size


class WindowStep(DecodeStep):
    """The model's forward for several new ids per row, each row at a position of its own, with logits of codes only.

    Keys and values are written where they belong, over those of rejected drafts, and a mask hides all later places.
    If compiled, all places of the cache are read, so that every call has the same shapes and one graph serves all.
    """

    def __init__(self, model: nn.Module, cache: DynamicCache, width: int, compiled: bool = False):
        super().__init__(model, cache, width, pack=not compiled)
        self.forward = compiled_forward() if compiled else forward
        self.room = cache.layers[0].room if compiled else None

    @torch.no_grad()
    def __call__(self, ids: torch.LongTensor, first: torch.LongTensor, seen: int) -> torch.Tensor:
        """Logits of the codes that follow each of the ids, (B, n, num_codes).

        Args:
            ids: (B, n).
            first: (B,), the position of each row's first id.
            seen: Number of places to read: more than any position.
        """
        return self.forward(self, ids, first, self.room or seen)


def forward(step: WindowStep, ids: torch.LongTensor, first: torch.LongTensor, seen: int) -> torch.Tensor:
    """`WindowStep.__call__`, a function so that torch.compile's work is kept from one step object to the next."""
    rows, width = ids.shape
    positions = first[:, None] + torch.arange(width, device=ids.device)  # (B, n)
    row = torch.arange(rows, device=ids.device)[:, None]
    hidden = torch.arange(seen, device=ids.device) > positions[:, :, None]  # (B, n, seen)
    mask = torch.zeros(hidden.shape, dtype=step.cos.dtype, device=ids.device).masked_fill(hidden, -torch.inf)

    def attend(memory, queries, keys, values, scale):
        groups, size = keys.shape[1:]
        memory.key_room[row, :, positions] = keys.view(rows, width, groups, size)
        memory.value_room[row, :, positions] = values.reshape(rows, width, groups, size)
        # heads that share keys are treated as several queries of one head, as in `DecodeStep`
        queries = queries.reshape(rows, width, groups, -1, size).permute(0, 2, 3, 1, 4)  # (B, G, H / G, n, D)
        shared = queries.shape[2]
        attended = scaled_dot_product_attention(
            queries.reshape(rows, groups, shared * width, size),
            memory.key_room[:, :, :seen],
            memory.value_room[:, :, :seen],
            attn_mask=mask[:, None].repeat(1, 1, shared, 1),
            scale=scale,
        )
        return attended.view(rows, groups, shared, width, size).permute(0, 3, 1, 2, 4)

    cos, sin = (table[positions].view(rows * width, 1, -1) for table in (step.cos, step.sin))
    return step.logits(ids.reshape(-1), cos, sin, attend).view(rows, width, -1)


@functools.cache
def compiled_forward():
    return torch.compile(forward, fullgraph=True, dynamic=False)


class ParallelWindow(FrameWindow):
    """A `FrameWindow` that draws whole frames, `width` places in each forward.

    Rows are at positions of their own inside a frame, and wait for each other at its end. The first drafts of a frame
    are the codes at the same places of the frame before.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: torch.LongTensor,
        drop_frames: int | None = None,
        recompute: bool = False,
        width: int = 1,
        compiled: bool = False,
    ):
        # drafts may reach beyond the last frame; compiled, one room fits rows of any length
        visible = model.config.max_position_embeddings if compiled else window_size(model.config, ids.shape[1])
        super().__init__(model, ids, drop_frames, recompute, room=visible + width - 1)
        self.width, self.compiled = width, compiled
        self.forwards = []  # per frame, (B,): the forwards after which a row had its frame

    def draw_frame(self, begin: int, end: int, pick, noise: torch.Tensor | None) -> None:
        """Fill ids[:, begin:end].

        Args:
            pick: A function of logits and noise, both (B, n, num_codes), that returns codes (B, n).
            noise: (B, end - begin, num_codes), or None if `pick` needs none.
        """
        offset, rows, size = self.model.config.code_offset, len(self.ids), end - begin
        newest = begin - 1 - self.dropped  # the position of the newest known id, the first to be given
        seen = self.cache.get_seq_length()
        if seen == 0 or seen != newest:  # the first pass, or frames to be encoded again
            self.plain_logits(begin, 1)
        if self.step is None:
            self.step = WindowStep(self.model, self.cache, self.width, self.compiled)

        # the newest known id, the frame (known ids, then drafts), and places beyond it that are never looked at
        frame = self.ids.new_full((rows, 1 + size + self.width), offset)
        frame[:, 0] = self.ids[:, begin - 1]
        if begin > size:
            frame[:, 1 : 1 + size] = self.ids[:, begin - size : begin]
        known = torch.ones(rows, dtype=torch.long, device=frame.device)  # (B,): ids of `frame` that are final
        row = torch.arange(rows, device=frame.device)[:, None]
        forwards = torch.zeros_like(known)
        least = most = 1
        while least <= size:
            width = self.width if self.compiled else min(self.width, 1 + size - least)
            places = known[:, None] - 1 + torch.arange(width, device=frame.device)  # (B, n)
            given = frame.gather(1, places)
            logits = self.step(given, newest + known - 1, newest + most - 1 + width)
            drawn = offset + pick(logits, None if noise is None else noise[row, places.clamp(max=size - 1)])
            frame.scatter_(1, places + 1, drawn)
            confirmed = (given[:, 1:] == drawn[:, :-1]).long().cumprod(dim=1).sum(dim=1)
            forwards += known <= size
            known = (known + 1 + confirmed).clamp(max=1 + size)
            least, most = (int(bound) for bound in known.aminmax())
        self.forwards.append(forwards)
        self.ids[:, begin:end] = frame[:, 1 : 1 + size]
        for layer in self.cache.layers:
            layer.crop(end - 1 - self.dropped)


__all__ = ["ParallelWindow"]
