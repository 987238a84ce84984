"""GPUs by their vendors' data sheets: the peak that `toto plan` and the MFU of every log refer to."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU as its vendor describes it.

    Fields:
        tflops: dense bfloat16 matrix products with float32 sums, TFLOP/s. Data sheets often print twice as much, "with
            sparsity".
        memory_gb: memory in 1e9 bytes. bandwidth_gbs: of that memory, in 1e9 bytes per second.
        name: pattern of the whole name that CUDA gives the device.
        source: where the numbers stand.
    """

    tflops: float
    memory_gb: float
    bandwidth_gbs: float
    name: str
    source: str


GPUS = {
    "a100": Gpu(312, 80, 2039, r"NVIDIA A100[- ]SXM4-80GB", "NVIDIA A100 data sheet, SXM 80 GB"),
    "h100": Gpu(989, 80, 3350, r"NVIDIA H100 80GB HBM3", "NVIDIA H100 data sheet, SXM"),
    "h200": Gpu(989, 141, 4800, r"NVIDIA H200", "NVIDIA H200 data sheet, SXM"),
    "b200": Gpu(2250, 180, 8000, r"NVIDIA B200", "NVIDIA DGX B200 data sheet, an eighth"),
    "l40s": Gpu(362, 48, 864, r"NVIDIA L40S", "NVIDIA L40S data sheet"),
    "a6000": Gpu(154.8, 48, 768, r"NVIDIA RTX A6000", "NVIDIA RTX A6000 data sheet, half of its sparse peak"),
    "rtx4090": Gpu(165.2, 24, 1008, r"NVIDIA GeForce RTX 4090", "NVIDIA Ada GPU architecture paper, appendix A"),
    "rtx5090": Gpu(209.5, 32, 1792, r"NVIDIA GeForce RTX 5090", "NVIDIA RTX Blackwell architecture paper, appendix A"),
}


def known_gpu(name: str) -> Gpu | None:
    """The GPU that CUDA calls `name`; None if it is not listed, as laptop versions, slices (MIG) and others are not."""
    return next((gpu for gpu in GPUS.values() if re.fullmatch(gpu.name, name)), None)
