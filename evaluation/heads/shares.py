"""Which process trains which heads of a streamed probe, in how many passes over the data, and where states are kept."""

from __future__ import annotations

import json
import os
import time
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file

from evaluation.heads.bank import HeadBank
from evaluation.heads.checkpoint import SAVE_SECONDS
from tokenization.files import write_json, write_whole
from tokenization.shards.parts import on_main

MEMORY_SHARE = 0.5  # of the free memory, for weights, gradients and moments of heads
SAVING_SHARE = 10  # times as long as saving takes, at least, until the next time
COPIES = 4  # of every weight: itself, its gradient and two moments


class Share(NamedTuple):
    """Heads of one kind and layer, with the settings from `start` to `stop`."""

    kind: str
    layer: int
    start: int
    stop: int


def shares(banks: dict[str, HeadBank], layers: list[int], world: int) -> list[list[Share]]:
    """What each process trains: equally many settings of every kind, from as few layers as possible."""
    found: list[list[Share]] = [[] for _ in range(world)]
    for kind, bank in banks.items():
        slots = [(layer, setting) for layer in layers for setting in range(len(bank.settings))]
        for rank, own in enumerate(found):
            part = slots[rank * len(slots) // world : (rank + 1) * len(slots) // world]
            for layer, group in groupby(part, key=lambda slot: slot[0]):
                settings = [setting for _, setting in group]
                own.append(Share(kind, layer, settings[0], settings[-1] + 1))
    return found


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or on the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    names = os.sysconf_names
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES"  # macOS has the latter only
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def passes_over(layers: list[int], sizes: dict[int, int], bound: int) -> list[list[int]]:
    """Layers in as few groups as possible whose heads take at most `bound` bytes, or one layer each.

    sizes: layer -> bytes of its heads in a process.
    """
    count = min(len(layers), max(1, -(-sum(sizes[layer] for layer in layers) // max(1, bound))))
    return [group.tolist() for group in np.array_split(layers, count)]


class PassState:
    """States of the heads that are trained in one pass, in one file for each process; `state.json` names the newest.

    Tensors are named by kind, layer and setting, so that any number of processes may go on.
    """

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, PartialState()
        self._saved, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """The same in all processes: whether enough time has passed for what saving costs."""
        waited = time.monotonic() - self._saved
        return on_main(self.processes, lambda: waited >= max(SAVE_SECONDS, SAVING_SHARE * self._took))

    def save(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """All processes save what they train after `step` updates; the older files are deleted."""
        start = time.monotonic()
        rank, world = self.processes.process_index, self.processes.num_processes
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{step:09d}-{rank}.safetensors"
        write_whole(file, lambda path: save_file({name: each.contiguous() for name, each in tensors.items()}, path))
        self.processes.wait_for_everyone()
        if self.processes.is_main_process:
            write_json(self.folder / "state.json", {"step": step, "processes": world})
            for old in self.folder.glob("*.safetensors"):
                if int(old.name.split("-")[0]) < step:
                    old.unlink()
        self._saved, self._took = time.monotonic(), time.monotonic() - start

    def load(self, wanted: set[str]) -> tuple[dict[str, torch.Tensor], int]:
        """(tensors by name, number of updates); nothing and 0 at the start of a pass."""
        file = self.folder / "state.json"
        if not file.is_file():
            return {}, 0
        state, found = json.loads(file.read_text()), {}
        for rank in range(state["processes"]):
            with safe_open(self.folder / f"{state['step']:09d}-{rank}.safetensors", "pt") as opened:
                found |= {name: opened.get_tensor(name) for name in wanted & set(opened.keys())}
        return found, state["step"]
