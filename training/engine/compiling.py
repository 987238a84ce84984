"""torch.compile of a model's blocks: when it is the default, and where the compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# torch's own variable; by default it names a folder in /tmp, which a cluster empties after every job.
CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compiles_by_default(architecture: str, liger: bool, is_cuda: bool) -> bool:
    """Whether a pre-training without --compile compiles: Toto's own blocks do, on CUDA.

    Mamba's blocks are loops over the row, which a compiler unrolls, and Liger brings kernels of its own.
    """
    return is_cuda and architecture in ("llama", "patches") and not liger


def has_triton(device: torch.device) -> bool:
    """Whether torch.compile can make kernels for this CUDA device: Triton needs compute capability 7.0."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def wants_compile(asked: bool | None, architecture: str, liger: bool, device: torch.device) -> bool:
    """The value of --compile, or the default where it is None."""
    if asked is not None:
        return asked
    return compiles_by_default(architecture, liger, device.type == "cuda") and has_triton(device)


def cache_folder() -> Path | None:
    """The folder of torch's cache of kernels, made persistent unless TORCHINDUCTOR_CACHE_DIR is set.

    ~/.cache/toto/inductor, or under XDG_CACHE_HOME; None if it cannot be written, in which case torch uses its own.
    """
    if CACHE not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "toto" / "inductor"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        if not os.access(folder, os.W_OK):
            return None
        os.environ[CACHE] = str(folder)
    return Path(os.environ[CACHE])


def compile_blocks(model, is_main: bool) -> None:
    """Let every block be compiled when it is first called, and say so in the log of the first process."""
    folder = cache_folder()
    for layer in getattr(model.base_model, "layers", None) or model.base_model.h:  # GPT-2's name
        layer.compile(dynamic=False)
    if is_main:
        kept = f"in {folder}" if folder else "in torch's temporary folder, because there is no writable ~/.cache"
        print(
            f"The blocks are compiled in the first step, which therefore takes longer; the kernels are kept {kept} for "
            "later runs (--compile false: no compilation).",
            flush=True,
        )
