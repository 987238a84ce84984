"""Features of clips computed when heads need them: processes share a batch's clips, then each gets its own layers.

A process runs the backbone on its part of a batch, for the layers of all processes, and sends every other process what
that one trains heads on. So the backbone's work is divided by the number of processes, and what travels in a step are
the features of the batch, once for each process that needs them; no gradients do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import distributed

from evaluation.backbones.extraction import Job
from evaluation.backbones.inputs import Inputs, ahead


class Wanted(NamedTuple):
    """What heads read of a layer: its tokens, or its pooled features."""

    layer: int
    tokens: bool


class FeatureStream:
    """The features of clips from one backbone, in batches that all processes ask for together.

    job: the backbone, its layers and number of tokens. batch_size: clips in one forward pass. device: of the features.
    """

    def __init__(self, job: Job, batch_size: int, device: torch.device):
        self.job, self.batch_size, self.device = job, batch_size, device
        self._like: dict[Wanted, torch.Tensor] = {}  # the features of one clip, for their shapes
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)

    def batches(
        self, inputs: Inputs, batches: Iterable[torch.Tensor], wanted: list[list[Wanted]]
    ) -> Iterator[dict[Wanted, torch.Tensor]]:
        """What this process wants of every batch: pooled float32 (B, P), or tokens float16 (B, n, D), on the device.

        Args:
            inputs: of the clips. batches: numbers of their clips, (B,) each. wanted: by each process.
        """
        everything = sorted(set().union(*wanted))
        if not everything:
            return
        tokens = self.job.max_tokens if any(each.tokens for each in everything) else None
        job = replace(self.job, layers=sorted({each.layer for each in everything}), max_tokens=tokens)
        parts = [(rows, rows.tensor_split(self.world)) for rows in batches]
        reads = (partial(inputs.read, few) for _, shared in parts for few in self._passes(shared[self.rank]))
        read = ahead(reads)
        if not set(everything) <= set(self._like):
            self._like |= self._of(job.made(inputs.read(torch.zeros(1, dtype=torch.long))), everything)
        for _, shared in parts:
            pieces = [self._of(job.made(next(read)), everything) for _ in self._passes(shared[self.rank])]
            # torch.cat copies them out of inference mode, so that the heads' backward pass may keep them
            mine = {
                each: torch.cat([piece[each] for piece in pieces] or [self._like[each][:0]]).to(self.device)
                for each in everything
            }
            yield mine if self.world == 1 else self._exchange(mine, [len(rows) for rows in shared], wanted)

    def _passes(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return list(rows.split(self.batch_size)) if len(rows) else []

    @staticmethod
    def _of(made: dict, everything: list[Wanted]) -> dict[Wanted, torch.Tensor]:
        return {each: made[each.layer][int(each.tokens)] for each in everything}

    def _exchange(
        self, mine: dict[Wanted, torch.Tensor], counts: list[int], wanted: list[list[Wanted]]
    ) -> dict[Wanted, torch.Tensor]:
        """The rows of all processes of what this one wants, in their order. counts: rows of each process."""
        nothing = torch.empty(0, dtype=torch.uint8, device=self.device)
        sent = [torch.cat([nothing, *(_bytes(mine[each]) for each in theirs)]) for theirs in wanted]
        own, like = wanted[self.rank], self._like
        sizes = [like[each].numel() * like[each].element_size() for each in own]
        received = torch.empty(sum(counts) * sum(sizes), dtype=torch.uint8, device=self.device)
        distributed.all_to_all_single(
            received, torch.cat(sent), [count * sum(sizes) for count in counts], [len(part) for part in sent]
        )
        found: dict[Wanted, list[torch.Tensor]] = {each: [] for each in own}
        blocks = iter(received.split([count * size for count in counts for size in sizes]))
        for count in counts:
            for each in own:
                block = next(blocks).clone()  # starts where its type may start
                found[each].append(block.view(like[each].dtype).view(count, *like[each].shape[1:]))
        return {each: torch.cat(pieces) for each, pieces in found.items()}


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().flatten().view(torch.uint8)
