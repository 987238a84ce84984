"""Checkpoints that are written while the training goes on: the state is copied, and a thread writes the copy."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator

from training.engine import checkpoints
from training.engine.device import CHECKPOINT_GROUP, CHECKPOINT_LIMIT, STEP_LIMIT
from training.engine.moments import Part, on_host
from training.find_model import STATE


@dataclass(frozen=True)
class Snapshot:
    """What one process writes of a checkpoint.

    Fields:
        weights: of the whole model, by name; empty except in the first process.
        parts: folder inside the training state -> this process's part of its tensors.
        state: the loop's state, JSON.
        spared: steps whose checkpoints are never deleted.
    """

    step: int
    weights: dict[str, torch.Tensor]
    parts: dict[str, Part]
    state: dict
    spared: set[int]

    def copied(self, device: torch.device) -> Snapshot:
        """The same in new host memory, which steps of the training do not change.

        Args:
            device: that of the training; weights that were gathered from it to the host are not copied again.
        """
        known: dict[tuple, torch.Tensor] = {}  # tied weights stay tied

        def of(tensor: torch.Tensor) -> torch.Tensor:
            key = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if key not in known:
                known[key] = tensor if tensor.device.type != device.type else on_host(tensor)
            return known[key]

        weights = {name: of(tensor) for name, tensor in self.weights.items()}
        parts = {name: part.on_host() for name, part in self.parts.items()}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return Snapshot(self.step, weights, parts, copy.deepcopy(self.state), set(self.spared))

    def write(
        self, run: Path, keep: int | None, model, processor, beside: Callable, is_main: bool, wait: Callable[[], None]
    ) -> None:
        """Write the checkpoint of the step; every process calls it.

        Args:
            keep: number of checkpoints to keep, or None.
            model: unwrapped, for its configuration. processor: saved with it, or None. beside: of the objective, see
                `Objective.write_beside`.
            wait: a barrier of all processes.
        Raises:
            OSError: the disk is full; existing checkpoints are unchanged.
        """
        with checkpoints.writing(run, self.step, keep, is_main, wait, self.spared) as folder:
            for name, part in self.parts.items():
                part.write(folder / STATE / name)
            if is_main:
                model.save_pretrained(folder, state_dict=dict(self.weights))
                if processor is not None:
                    processor.save_pretrained(folder)
                beside(folder)
                checkpoints.save_loop(folder, self.state)


class Writer:
    """Writes checkpoints, one at a time: in a thread while the training goes on, or at once.

    Used as a context, it waits at the end for the checkpoint that is being written, even after an error or Ctrl-C. The
    threads of several processes wait for each other in a group of their own, since those of the training are in use.

    Args:
        in_background: whether a thread writes.
        say: prints a line.
    """

    def __init__(self, accelerator: Accelerator, in_background: bool, say: Callable[[str], None]):
        self.in_background, self.say, self.wait = in_background, say, accelerator.wait_for_everyone
        self.is_alone = accelerator.num_processes == 1
        if in_background and not self.is_alone:
            group = dist.new_group(backend="gloo", timeout=CHECKPOINT_LIMIT, group_desc=CHECKPOINT_GROUP)
            self.wait = functools.partial(dist.barrier, group)
        self.written: Path | None = None
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._step = 0

    def start(self, step: int, target: Path, write: Callable[[], None]) -> None:
        """Begin to write the checkpoint of a step; `finish` comes before.

        Args:
            target: the folder that `write` makes.
        """
        if not self.in_background:
            write()
            self.written = target
            return

        def work() -> None:
            try:
                write()
                self.written = target
            except BaseException as error:
                self._failed = error

        self._step = step
        self._thread = threading.Thread(target=work, name=f"checkpoint of step {step}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread raised, if it has ended."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self, reason: str | None = None) -> None:
        """Wait for the checkpoint that is being written, and raise what its thread raised.

        Args:
            reason: printed if there is something to wait for.
        """
        if self._thread is None:
            return
        if reason and self._thread.is_alive():
            self.say(f"waiting for the checkpoint of step {self._step}, which is still being written{reason}")
        self._thread.join()
        self._thread, failed, self._failed = None, self._failed, None
        if failed is not None:
            raise failed

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, error, _) -> None:
        if error is None:
            self.finish()
            return
        if self._thread is None:
            return
        if self._thread.is_alive():
            self.say(f"waiting for the checkpoint of step {self._step} (Ctrl-C leaves it unfinished)")
        # After an error of several processes the others' threads may have died.
        self._thread.join(None if self.is_alone else STEP_LIMIT.total_seconds())
        self._thread = None
        if self._failed is not None:
            self.say(f"the checkpoint of step {self._step} was not written: {self._failed}")
