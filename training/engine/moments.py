"""The optimiser's moments, and other named tensors of a checkpoint, as safetensors in the layout of torch's DCP.

Every process writes the part that it holds, and any number of processes can read all of them (DCP: torch's distributed
checkpoints). DCP's own writer serialises a file in memory and holds Python's lock meanwhile: a training that goes on in
another thread would stand still, so files are written here, and read by DCP.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch


@dataclass(frozen=True)
class Part:
    """What one process writes of named tensors.

    Fields:
        rank: of the process, for the name of its file.
        tensors: by name, whole or a chunk.
        offsets: where each begins in the whole tensor.
    """

    rank: int
    tensors: dict[str, torch.Tensor]
    offsets: dict[str, tuple[int, ...]]

    def on_host(self) -> Part:
        """The same in new host memory; see `on_host`."""
        return replace(self, tensors={name: on_host(tensor) for name, tensor in self.tensors.items()})

    def write(self, folder: Path) -> None:
        """Write it into `folder`, next to the parts of other processes.

        Raises:
            safetensors.SafetensorError: the disk is full.
        """
        from safetensors.torch import save_file

        if not self.tensors:  # more processes than tensors
            return
        folder.mkdir(parents=True, exist_ok=True)
        layout = {name: {"saved_offsets": list(offset)} for name, offset in self.offsets.items()}
        metadata = {"DCP_SHARDING_INFO": json.dumps(layout)}  # alone: safetensors writes several in any order
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / f"part-{self.rank:05d}.safetensors", metadata=metadata)


def own_part(tensors: dict[str, torch.Tensor], rank: int = 0, world: int = 1) -> Part:
    """What process `rank` of `world` writes: its shards, once where copies of them are kept (HSDP), and its share of
    the tensors that every process has. They are not copied.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as local_shape_and_offset

    found, offsets, loads = {}, {}, [0] * world
    for name, tensor in sorted(tensors.items()):  # a resumed run has them in another order
        tensor = tensor.detach()
        if isinstance(tensor, DTensor):
            mesh, placements = tensor.device_mesh, tensor.placements
            places = zip(placements, mesh.get_coordinate(), strict=True)
            is_copy = any(placement.is_replicate() and place for placement, place in places)
            if not is_copy and tensor.to_local().numel():
                found[name] = tensor.to_local()
                offsets[name] = local_shape_and_offset(tensor.shape, mesh, placements)[1]
        else:
            least = loads.index(min(loads))
            loads[least] += tensor.nbytes + 1
            if least == rank:
                found[name], offsets[name] = tensor, (0,) * tensor.ndim
    return Part(rank, found, offsets)


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory, pinned if it comes from CUDA, whose copy may not be complete before a synchronisation."""
    is_cuda = tensor.device.type == "cuda"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_cuda)
    return copy.copy_(tensor.detach(), non_blocking=is_cuda)


def moments(model, optimizer) -> dict[str, torch.Tensor]:
    """Moments of AdamW and Muon as they are in the optimiser: "name of the weight:name of the moment" -> tensor."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}:{moment}": value
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }


def load_moments(folder: Path, model, optimizer, distributed: bool) -> None:
    """Read moments into a new optimiser; any number of processes may have written them."""
    from training.engine.optim import is_muon

    for group in optimizer.param_groups:
        names = ("momentum_buffer",) if is_muon(group) else ("exp_avg", "exp_avg_sq")
        for parameter in group["params"]:
            state = {name: torch.zeros_like(parameter) for name in names}
            if not is_muon(group):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = state
    load_tensors(folder, moments(model, optimizer), distributed)


def load_tensors(folder: Path, tensors: dict[str, torch.Tensor], distributed: bool) -> None:
    """Fill the tensors with those in `folder`; any number of processes may have written them."""
    import torch.distributed.checkpoint as dcp

    with _quiet():
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(tensors, storage_reader=reader, no_dist=not distributed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # torch warns about every call without a process group, which is how a single process calls it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(not initialized|single process|no_dist).*")
        yield
