"""The checkpoint of a bank of heads: results of finished layers, and the state of the layer being trained."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from evaluation.heads.selection import Array, clips
from tokenization.files import write_whole

# A killed process loses at most this many seconds of work.
SAVE_SECONDS = 30


def fingerprint(arrays: list[Array], labels: list[torch.Tensor | None]) -> dict:
    """Identifies the features, labels and items of a run, by shapes, all labels, and 16 clips of each set."""
    digest = hashlib.sha256()
    for array in arrays:
        rows = torch.from_numpy(np.linspace(0, array.shape[1] - 1, 16).astype(np.int64)).unique()
        digest.update(clips(array, rows).contiguous().numpy().tobytes())
    for values in labels:
        digest.update(b"" if values is None else values.contiguous().numpy().tobytes())
    return {"shapes": [list(array.shape) for array in arrays], "data": digest.hexdigest()}


def require_same_run(file: Path, was: dict, now: dict) -> None:
    """Raises ValueError if a file is of a run `was`, as its JSON has it, that differs from this one."""
    now = json.loads(json.dumps(now))
    if was != now:
        key = next(key for key in (*now, *was) if was.get(key) != now.get(key))
        raise ValueError(
            f"{file} belongs to another run: its {key} is {was.get(key)}, not {now.get(key)}; delete it, or name "
            "another file."
        )


class HeadCheckpoint:
    """A safetensors file with JSON in its header, written atomically; nothing is written if `file` is None.

    finished: the results of finished units (all layers of the linear heads, or one layer's heads on tokens), in order.
    state, steps: weights and moments of the unit being trained, and its number of updates; {} and 0 at its start.

    Raises:
        ValueError: the file is of another run than `run`, or the ranks read different files.
    """

    def __init__(self, file: Path | None, run: dict):
        self.file, self.run = file, run
        self.finished: list[dict[str, torch.Tensor]] = []
        self.state: dict[str, torch.Tensor] = {}
        self.steps = 0
        self._saved = time.monotonic()
        if file is not None and file.exists():
            self._read(file)
        self._check_ranks()

    def _read(self, file: Path) -> None:
        with safe_open(file, "pt") as opened:
            header = opened.metadata()
            require_same_run(file, json.loads(header["run"]), self.run)
            tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
        self.steps, self.finished = int(header["steps"]), [{} for _ in range(int(header["finished"]))]
        for name, tensor in tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "state":
                self.state[rest] = tensor
            else:
                self.finished[int(kind)][rest] = tensor

    def _check_ranks(self) -> None:
        if distributed.is_available() and distributed.is_initialized():
            place = torch.tensor([len(self.finished), self.steps])
            most, least = place.clone(), place.clone()
            distributed.all_reduce(most, distributed.ReduceOp.MAX)
            distributed.all_reduce(least, distributed.ReduceOp.MIN)
            if most.tolist() != least.tolist():
                raise ValueError(f"{self.file} differs between processes; put it on storage that all processes share.")

    def due(self) -> bool:
        return self.file is not None and time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self, state: dict[str, torch.Tensor], steps: int) -> None:
        """Writes the file on rank 0; the other ranks read it when they start."""
        self._saved = time.monotonic()
        is_first = not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
        if self.file is None or not is_first:
            return
        tensors = {f"state.{name}": tensor for name, tensor in state.items()}
        for number, result in enumerate(self.finished):
            tensors |= {f"{number}.{name}": tensor.contiguous() for name, tensor in result.items()}
        header = {"run": json.dumps(self.run), "steps": str(steps), "finished": str(len(self.finished))}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, lambda path: save_file(tensors, path, metadata=header))

    def results(self) -> dict[str, torch.Tensor]:
        """The results of all units by name, joined along the first axis, layers.

        The names are those of the last unit: files of earlier versions also hold test probabilities that nobody reads.
        """
        return {name: torch.cat([unit[name] for unit in self.finished]) for name in self.finished[-1]}

    def finish(self, result: dict[str, torch.Tensor]) -> None:
        """Adds the result of a finished unit, whose state is no longer needed."""
        self.finished.append(result)
        self.state, self.steps = {}, 0
        self.save({}, 0)
