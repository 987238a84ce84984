"""Whether bfloat16 is fast on a device, and copies of visual tokenizers that encode in bfloat16."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

from .modeling_dvae import TotoDVAECodeLogits
from .modeling_vqgan import TotoVQGANQuantizer

# The layers that choose the code stay in fp32: in bf16 near neighbours tie.
KEPT_IN_FP32 = (TotoDVAECodeLogits, TotoVQGANQuantizer)


def bf16_is_fast(device: torch.device) -> bool:
    """True on recent GPUs, on CPUs with AMX, and on AMD's with AVX512-BF16.

    Other CPUs emulate bfloat16, tens of times slower. AVX512-BF16 alone is not sufficient: matrix products took 1.6
    times as long as in float32 on an Intel CPU that has it without AMX, and 0.4 times on an AMD EPYC (docs/log.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        cpu = torch.cpu.get_capabilities()
        amd = cpu.get("cpu_name", "").startswith("AMD")
        return bool(cpu.get("amx_bf16") or (amd and cpu.get("avx512_bf16")))
    return False


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, a GPU computes float32 products and convolutions in float32.

    By default torch computes cuDNN's convolutions in TF32, whose mantissa has 10 bits: codes of near neighbours differ.
    """
    settings = [torch.backends.cuda.matmul]
    if hasattr(torch.backends.cudnn, "conv"):  # since torch 2.9, which reads allow_tf32 only where this is not set
        settings.append(torch.backends.cudnn.conv)
        name, off = "fp32_precision", "ieee"
    else:
        settings.append(torch.backends.cudnn)
        name, off = "allow_tf32", False
    before = [getattr(setting, name) for setting in settings]
    try:
        for setting in settings:
            setattr(setting, name, off)
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setattr(setting, name, value)


def bf16_encoder(model: nn.Module) -> nn.Module:
    """A copy of a visual tokenizer for `encode` only: weights in bf16, the choice of the code in fp32.

    Autocast would cast the weights again for every batch: it caches no casts under `inference_mode` or after its block.
    """
    fp32 = {name: module for name, module in model.named_modules() if isinstance(module, KEPT_IN_FP32)}
    memo = {id(module): module for module in fp32.values()}  # shared with the original and not cast below
    if isinstance(model.decoder, nn.Module):
        memo[id(model.decoder)] = nn.Identity()  # not needed, and half of the memory
    half = copy.deepcopy(model, memo)
    for name in fp32:
        half.set_submodule(name, nn.Identity())
    half.to(torch.bfloat16).to(memory_format=torch.channels_last)
    for name, module in fp32.items():
        half.set_submodule(name, module)
    return half.eval()
