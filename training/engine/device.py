"""The machine: its accelerator, its measured matmul FLOPs, and the installed versions."""

import contextlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DDPCommunicationHookType, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy

from tokenization.precision import bf16_is_fast
from training.engine.data_sheets import known_gpu

# How long processes wait for one that does not come: in the steps of a training, where ten minutes mean that it hangs;
# while the first one writes a checkpoint; and while it evaluates, or everything is loaded and compiled.
STEP_LIMIT, CHECKPOINT_LIMIT, EVALUATION_LIMIT = timedelta(minutes=10), timedelta(hours=1), timedelta(days=1)
# The group in which the threads that write a checkpoint wait for each other; it always has CHECKPOINT_LIMIT.
CHECKPOINT_GROUP = "checkpoints"


def fast_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 autocast if it is faster on the device, else no autocast. Weights stay float32 in either case."""
    return torch.autocast(device.type, torch.bfloat16) if bf16_is_fast(device) else contextlib.nullcontext()


def flush_denormals() -> None:
    """Treat numbers below 1e-38 as zero on a CPU, for the rest of the process.

    Softmax and its gradients contain many of them once attention concentrates on few tokens. Each takes a CPU a hundred
    cycles or more, and they can make a backward pass four times slower. GPUs are not affected.
    """
    torch.set_flush_denormal(True)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch uses only algorithms that give the same bits in every run, if `wanted`.

    An operation that has none raises a RuntimeError, which names it. cuBLAS reads its workspace from the environment
    when CUDA starts, so this comes before it.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    fill = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # all memory is written here before it is read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.utils.deterministic.fill_uninitialized_memory = fill


def limit_collectives(limit: timedelta) -> None:
    """Processes that wait for another one longer than this are ended from now on; nothing in a single process.

    Threads that write a checkpoint keep their own limit.

    torch has this per group and under a private name only; torchtitan calls the same function.
    """
    if not dist.is_available() or not dist.is_initialized():
        return
    for group in dist.distributed_c10d._world.pg_map:  # those of this process, such as HSDP's
        if group.group_desc == CHECKPOINT_GROUP:
            continue
        dist.distributed_c10d._set_pg_timeout(limit, group)


def make_accelerator(gradient_reduction: str = "fp32", broadcast_buffers: bool = False, **settings) -> Accelerator:
    """An Accelerator, in bfloat16 if that is faster; fp16 or fp8 from `accelerate launch` is kept.

    The launcher sets `no` by default, so `no` counts as not set.

    Args:
        gradient_reduction: "fp32", or "bf16" to sum gradients over processes in bfloat16.
        broadcast_buffers: DDP sends the first process's buffers to the others before each forward pass, where processes
            wait for each other once more. Only the running statistics of a batch norm need it; RoPE's never change.
        settings: further arguments of `Accelerator`.
    """
    flush_denormals()
    # Before the Accelerator, whose precision cannot be changed later in the same process. The training loop lowers the
    # time limit after its first step.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=EVALUATION_LIMIT)
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no":
        settings["mixed_precision"] = "bf16" if bf16_is_fast(state.device) else "no"
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") == "2":
        # Accelerate would cast the residual stream and the sums of gradients to bfloat16. With this policy, bfloat16 is
        # used only where autocast uses it, as with DDP: the same numbers, at twice the traffic between devices.
        # --gradient_reduction bf16 halves that of the gradients.
        reduced = torch.bfloat16 if gradient_reduction == "bf16" else None
        policy = MixedPrecisionPolicy(reduce_dtype=reduced)
        settings["fsdp_plugin"] = FullyShardedDataParallelPlugin(mixed_precision_policy=policy)
    # Gradients live in the buckets in which they are exchanged, instead of in a second copy.
    hook = DDPCommunicationHookType.BF16 if gradient_reduction == "bf16" else DDPCommunicationHookType.NO
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=broadcast_buffers, gradient_as_bucket_view=True, comm_hook=hook)
    ]
    return Accelerator(kwargs_handlers=handlers, **settings)


def require_together(num_processes: int) -> None:
    """Check that processes that were launched together form one group.

    Raises:
        ValueError: `num_processes` is not the number launched.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if num_processes != world:
        raise ValueError(
            f"{world} processes were launched, but each works alone; on CPUs, set ACCELERATE_USE_CPU=true."
        )


def require_free_port() -> None:
    """Check that this process can listen on MASTER_PORT, before the others wait for it.

    Raises:
        ValueError: another program listens there.
    """
    # torchrun and accelerate launch listen on the port themselves and have checked it.
    launcher_listens = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if "MASTER_PORT" not in os.environ or os.environ.get("RANK", "0") != "0" or launcher_listens:
        return
    port = int(os.environ["MASTER_PORT"])
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise ValueError(f"Port {port} (MASTER_PORT) is in use; choose another one for all processes.") from error


def data_sheet_peak(accelerator: Accelerator) -> float | None:
    """Dense FLOPs per second of one device by its data sheet: 100 % of MFU, as in `toto plan`.

    None if the device is not listed (`data_sheets.GPUS`), and without bfloat16, of which the listed peaks are.
    """
    if accelerator.device.type != "cuda" or accelerator.mixed_precision != "bf16":
        return None
    gpu = known_gpu(torch.cuda.get_device_name(accelerator.device))
    return gpu and 1e12 * gpu.tflops


def matmul_peak(device: torch.device) -> float:
    """Measured FLOPs per second of a large matmul in the dtype of training, which stand next to the data sheet's.

    Other work on the device lowers them, so that a share of them is no stable number.
    """
    dtype = torch.bfloat16 if bf16_is_fast(device) else torch.float32
    side = 4096 if device.type != "cpu" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def seconds(repeats: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / repeats

    seconds(2)
    return 2 * side**3 / min(seconds(4) for _ in range(3))


def surroundings(accelerator: Accelerator) -> dict:
    """`versions`, and the precision that the accelerator trains in."""
    return versions(accelerator.device) | {"mixed_precision": accelerator.mixed_precision}


def versions(device: torch.device | str | None = None) -> dict:
    """Versions of packages, commit of this project, threads and device; None if one is unknown."""
    found = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    if device is not None:
        found["device"] = str(device)
    for package in ("modeling-toto", "torch", "transformers", "accelerate", "datasets", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None  # this project, run from a clone that is not installed
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found["commit"] = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:  # no git here
        found["commit"] = None
    return found


def in_own_memory(model):
    """The same model with its weights in new memory, so that a resumed run rounds like an uninterrupted one.

    On a CPU, the weights of from_pretrained are in a memory-mapped file, where tensors start at any multiple of four
    bytes, and the rounding of some CPU kernels depends on alignment (docs/log.md, 2026-11-26).
    """
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    return model
