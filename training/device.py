"""What the device can do: whether bfloat16 pays, and how many matmul FLOPs a second it really reaches."""

import contextlib
import time

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """True on recent GPUs and on CPUs with AMX or AVX512-BF16; elsewhere bfloat16 is emulated, tens of times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return False


def fast_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 autocast where it pays, nothing elsewhere. Weights stay float32 in either case."""
    return torch.autocast(device.type, torch.bfloat16) if bf16_is_fast(device) else contextlib.nullcontext()


def matmul_peak(device: torch.device) -> float:
    """Measured FLOPs a second of a large matmul in the dtype that training uses: the 100 % of MFU."""
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
