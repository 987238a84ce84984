"""Checks of `gpu_checks.py` about training: peaks, steps, recomputation, attention, loss, resume."""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
from bench_train import make_side, random_ids
from gpu_setup import Setup, free
from timing import spread
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def peaks(setup: Setup) -> dict:
    """TFLOP/s of square products in bf16, TF32 and fp32, next to the data sheet's bf16."""
    side = 256 if setup.tiny else 8192
    values, sheet = {"side": side}, setup.gpu
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("fp32", torch.float32, "ieee"),
    ):
        a, b = (torch.randn(side, side, device=setup.device, dtype=dtype) for _ in range(2))
        repeats = 1 if setup.tiny or name == "fp32" else 10
        # a CPU computes "tf32" by a reference loop, a hundred times slower
        with float32_products(precision if setup.is_cuda else "ieee"):
            seconds, _ = setup.seconds({name: lambda a=a, b=b, n=repeats: [a @ b for _ in range(n)]})
        flops = [2 * side**3 * repeats / each for each in seconds[name]]
        setup.peaks[name] = max(flops)
        values[f"{name}_tflops"] = spread([each / 1e12 for each in flops])
    values["data_sheet_bf16_tflops"] = sheet and sheet.tflops
    values["bf16_share_of_data_sheet"] = sheet and setup.peaks["bf16"] / (1e12 * sheet.tflops)
    return values


@contextlib.contextmanager
def float32_products(precision: str):
    """Inside, float32 products are computed in "ieee" or "tf32"."""
    setting = torch.backends.cuda.matmul
    new = hasattr(torch.backends.cudnn, "conv")  # since torch 2.9
    name, value = ("fp32_precision", precision) if new else ("allow_tf32", precision == "tf32")
    before = getattr(setting, name)
    setattr(setting, name, value)
    try:
        yield
    finally:
        setattr(setting, name, before)


def utilisation(setup: Setup, config, tokens_per_second: float) -> dict:
    """MFU of a rate of training, of the data sheet's and of the measured peak.

    `flops` counts half of the square of causal attention, as `toto plan` and the log do; `whole_square` counts all of
    it, as nanochat and torchtitan do.
    """
    from training.architectures import flops_per_token

    half = flops_per_token(config)
    whole = half + 6 * config.num_hidden_layers * config.hidden_size * config.max_position_embeddings
    found, sheet = {}, setup.gpu
    for of, peak in (("data_sheet", sheet and 1e12 * sheet.tflops), ("measured_peak", setup.peaks.get("bf16"))):
        for name, flops in (("mfu", half), ("mfu_whole_square", whole)):
            found[f"{name}_of_{of}"] = peak and tokens_per_second * flops / peak
    return found


def train_step(setup: Setup, compiled: bool) -> dict:
    """Optimisation steps of base at 4 rows, against transformers' Llama of the same config; both also eager."""
    from training.engine.compiling import cache_folder

    args, rows = setup.side_args("base"), 2 if setup.tiny else 4
    config = setup.config()
    ids = random_ids(config, rows).to(setup.device)
    calls, memory, values, backend = {}, {}, {"rows": rows}, "aot_eager" if setup.tiny else "inductor"
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        folder = cache_folder()
        values["kernels_in_cache"] = folder is not None and folder.is_dir() and any(folder.iterdir())
        values["backend"] = backend
    for kind in ("eager", "compiled") if compiled else ("eager",):
        for name in ("toto", "llama"):
            side = f"{name}_{kind}"
            _, step = make_side(name, args, kind == "compiled", setup.device.type, backend)
            calls[side] = lambda step=step: step(ids)
            step(ids)  # the moments are there from the second step on
            held = torch.cuda.memory_allocated(setup.device) if setup.is_cuda else 0
            memory[f"{side}_step_gb"] = setup.peak_gb(calls[side]) - held / 1e9
    values |= memory | setup.rates(calls, ids.numel(), "tokens_per_second")
    for side in calls:
        found = utilisation(setup, config, values[f"{side}_tokens_per_second"]["median"])
        values |= {f"{side}_{name}": share for name, share in found.items()}
    kind = "compiled" if compiled else "eager"
    medians = [values[f"{name}_{kind}_tokens_per_second"]["median"] for name in ("toto", "llama")]
    values[f"{kind}_toto_over_llama"] = medians[0] / medians[1]
    if compiled:
        counters = torch._dynamo.utils.counters
        values["graph_breaks"] = sum(counters["graph_break"].values())
        values["compiled_over_eager"] = medians[0] / values["toto_eager_tokens_per_second"]["median"]
    else:
        values["toto_synchronisations_per_step"] = setup.synchronisations(calls["toto_eager"])
    return values


def recomputation(setup: Setup) -> dict:
    """1b at 4 rows with and without activation checkpointing, which the recipes leave out where 40 GB fit."""
    args, rows = setup.side_args("1b"), 2 if setup.tiny else 4
    config = setup.config("1b")
    ids = random_ids(config, rows).to(setup.device)
    model, step = make_side("toto", args, device=setup.device.type)

    def plain():
        model.gradient_checkpointing_disable()
        step(ids)

    def checkpointed():
        model.gradient_checkpointing_enable()
        step(ids)

    sides = {"plain": plain, "checkpointed": checkpointed}
    plain()
    values = {"rows": rows} | {f"{name}_peak_gb": setup.peak_gb(call) for name, call in sides.items()}
    values |= setup.rates(sides, ids.numel(), "tokens_per_second")
    for name in sides:
        found = utilisation(setup, config, values[f"{name}_tokens_per_second"]["median"])
        values |= {f"{name}_{key}": share for key, share in found.items()}
    medians = [values[f"{name}_tokens_per_second"]["median"] for name in sides]
    return values | {"plain_over_checkpointed": medians[0] / medians[1]}


def attention(setup: Setup) -> dict:
    """Causal SDPA, forward and backward, by each back-end at 4,096 and 4,098 keys; ms, or why it cannot."""
    values = {}
    rows, heads, size, lengths = (1, 2, 16, (64, 66)) if setup.tiny else (4, 12, 64, (4096, 4098))
    for length in lengths:
        shape = (rows, heads, length, size)
        q, k, v = (torch.randn(shape, device=setup.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        sides = {}
        for name, backends in (
            ("default", None),
            ("flash", [SDPBackend.FLASH_ATTENTION]),
            ("cudnn", [SDPBackend.CUDNN_ATTENTION]),
            ("efficient", [SDPBackend.EFFICIENT_ATTENTION]),
        ):

            def call(backends=backends, q=q, k=k, v=v):
                chosen = contextlib.nullcontext() if backends is None else sdpa_kernel(backends)
                with chosen:
                    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                out.backward(q)

            try:
                call()
                sides[name] = call
            except RuntimeError as error:
                values[f"{name}_{length}"] = str(error).splitlines()[0]
        seconds, _ = setup.seconds(sides, rounds=2 if setup.tiny else 20)
        values |= {f"{name}_{length}_ms": spread([1e3 * each for each in taken]) for name, taken in seconds.items()}
    return values


def loss_chunks(setup: Setup) -> dict:
    """The loss of 4 rows and its gradients with chunks of several sizes, and where it waits for the device."""
    from modeling_toto import loss_toto

    config = setup.config()
    count = (2 if setup.tiny else 4) * config.row_length()
    states = torch.randn(count, config.hidden_size, device=setup.device, requires_grad=True)
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=setup.device)
    targets = torch.randint(config.vocab_size, (count,), device=setup.device)

    def call(elements: int):
        with (
            patch.object(loss_toto, "CHUNK_ELEMENTS", elements),
            patch.object(loss_toto, "DEVICE_CHUNK_ELEMENTS", elements),
            torch.autocast(setup.device.type, torch.bfloat16),
        ):
            loss_toto.token_cross_entropy(states, targets, head)[0].backward()

    powers = (10, 12) if setup.tiny else (20, 22, 23, 25, 27)
    sides = {f"2^{power}": lambda power=power: call(2**power) for power in powers}
    values = {"default": loss_toto.chunk_rows(head.weight) * config.vocab_size}
    values |= {f"{name}_peak_gb": setup.peak_gb(side) for name, side in sides.items()}
    values |= setup.rates(sides, count, "tokens_per_second", rounds=2 if setup.tiny else 10)
    return values | {"synchronisations": setup.synchronisations(sides[f"2^{powers[0]}"])}


def resume(setup: Setup) -> dict:
    """Whether a run that is resumed half-way has the losses and norms of the whole one, and whether a repeated run has.

    The first with torch's default algorithms and with --deterministic, the second with the default. The rows are of the
    embedded world, tokenized on the way.
    """
    from training.pretrain import pretrain_model

    steps = 2 if setup.tiny else 10
    flags = {"scale": "tiny", "recipe": "base"} if setup.tiny else {"recipe": "tiny_cpu", "sources": [WORLD]}
    flags |= {"max_steps": steps, "save_steps": steps // 2, "logging_steps": 1, "val_rows": 0, "warmup_steps": 2}
    values, device = {"steps": steps}, {} if setup.is_cuda else {"ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory(prefix="toto-gpu-") as folder, patch.dict("os.environ", device):
        for name, deterministic in (("default", False), ("deterministic", True)):
            found = {}
            with contextlib.redirect_stdout(sys.stderr):
                for turn in ("repeated", "whole")[deterministic:]:
                    run = Path(folder) / f"{name}_{turn}"
                    pretrain_model(output_dir=run, deterministic=deterministic, compile=False, **flags)
                    found[turn] = logged(run)
                shutil.rmtree(run / "checkpoints" / f"step_{steps:06d}")
                found["resumed"] = logged(pretrain_model(resume=run))
            free()
            whole = found.pop("whole")
            for turn, other in found.items():
                apart = max(abs(a - b) for a, b in zip(whole, other, strict=True))
                values[f"{name}_{turn}_is_exact"] = apart == 0
                values[f"{name}_{turn}_largest_difference"] = apart
    return values


WORLD = {"data": "toyworld"}


def logged(run: Path) -> list[float]:
    """Losses and norms of a run, step by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [row[key] for row in rows if "loss" in row for key in ("loss", "grad_norm")]
