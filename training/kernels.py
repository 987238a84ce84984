"""Liger's fused GPU kernels as an option of training: RMSNorm, SwiGLU and RoPE in Triton."""

import torch
from torch import nn


def use_liger(model: nn.Module, device: torch.device) -> None:
    """Put Liger's kernels into a Toto's blocks (`pip install liger-kernel`); its loss stays Toto's own chunked one.

    A block with a replaced part goes Llama's plain way, so on a GPU it depends on shapes which is faster: measure.

    Raises:
        ValueError: no GPU, or the package is missing.
    """
    if device.type not in ("cuda", "xpu"):
        raise ValueError(f"--liger needs a GPU, and this run is on {device.type}: leave it out.")
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
    except ImportError as error:
        raise ValueError("--liger needs Liger's kernels: pip install 'modeling-toto[liger]'.") from error
    apply_liger_kernel_to_llama(
        rope=True, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=True, swiglu=True, model=model
    )
