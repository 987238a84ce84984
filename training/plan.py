"""`toto plan`: estimates the cost of a recipe in tokens, epochs, FLOPs, hours, memory and disk."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from training.args import DataArgs, ModelArgs, PretrainOptimArgs, PretrainRunArgs, Source
from training.flags import option, parse, refuse_idle, require, typed_flags
from training.tiny_scale import shrink

DESCRIPTION = (
    "Estimate the cost of a recipe: parameters, epochs of every source, FLOPs, hours, memory per device, disk. "
    "All flags of toto pretrain are accepted and change the recipe in the same way."
)
# Dense bf16 peak in TFLOP/s and memory in GB, from the data sheets of the vendors.
GPUS = {"a100": (312, 80), "h100": (989, 80), "h200": (989, 141), "b200": (2250, 180)}
# Tokens of the paper's datasets at 16 x 16 per frame (Table 2). It counts videos at 30 frames per second; training
# uses every fourth.
PAPER_TOKENS = {"imagenet21k": 3.6e9, "kinetics600": 41.3e9 / 4, "ego4d": 103e9 / 4, "howto100m": 2560e9 / 4}
PAPER_TOKENS |= {"imagenet1k": 1_281_167 * 256}
ALL = ("tiny", "base", "large", "1b", "a1", "a2", "a3", "a4", "a5", "a6")
# Usable share of the memory of a device; the rest is fragmentation, the CUDA context and NCCL buffers.
USABLE = 0.9


@dataclass(frozen=True)
class PlanArgs:
    """The devices to plan for, and what is assumed about them."""

    gpus: int = option(8, "number of devices")
    gpu: str = option("h100", f"kind of device: {', '.join(GPUS)}; overridden by --peak_tflops and --memory_gb")
    peak_tflops: float | None = option(None, "dense peak of one device in --precision, in TFLOP/s")
    memory_gb: float | None = option(None, "memory of one device, in GB")
    mfu: float = option(0.4, "share of the peak that training reaches (assumed; --measured reports that of a run)")
    precision: str = option("bf16", "precision of products and activations: bf16, or fp32, which needs --peak_tflops")
    sharding: str = option(
        "ddp", "ddp: every device holds all weights; fsdp2: weights, gradients and moments are sharded"
    )
    source_tokens: list[str] = option([], "NAME=NUMBER: tokens of a source that has no shards and is not in the paper")
    all: bool = option(False, "print a table of all presets instead")
    json: bool = option(False, "print JSON")
    measured: str | None = option(None, "run folder: print its measured tokens/s next to the predicted ones")

    def __post_init__(self):
        require(self.gpus > 0, "--gpus must be above 0.")
        require(0 < self.mfu <= 1, "--mfu must lie between 0 and 1.")
        require(self.sharding in ("ddp", "fsdp2"), f"--sharding must be ddp or fsdp2, not '{self.sharding}'.")
        require(self.precision in ("bf16", "fp32"), f"--precision must be bf16 or fp32, not '{self.precision}'.")
        known = self.gpu in GPUS or (self.peak_tflops is not None and self.memory_gb is not None)
        kinds = ", ".join(GPUS)
        require(known, f"--gpu {self.gpu} is unknown; choose {kinds}, or give --peak_tflops and --memory_gb.")
        fp32 = self.precision == "bf16" or self.peak_tflops is not None
        require(fp32, "The known peaks are those of bf16; give --peak_tflops for --precision fp32.")
        for pair in self.source_tokens:
            name, _, number = pair.partition("=")
            sound = name and number.replace(".", "", 1).replace("e", "", 1).replace("+", "", 1).isdigit()
            require(bool(sound), f"--source_tokens '{pair}' must be NAME=NUMBER, such as ego4d=2.5e10.")

    @property
    def peak(self) -> float:
        """Peak FLOPs per second of one device."""
        return 1e12 * (self.peak_tflops or GPUS[self.gpu][0])

    @property
    def memory(self) -> float:
        """Memory of one device in bytes."""
        return 1e9 * (self.memory_gb or GPUS[self.gpu][1])


def plan(model: ModelArgs, data: DataArgs, run: PretrainRunArgs, optim: PretrainOptimArgs, args: PlanArgs) -> dict:
    """The plan of one recipe, as a dictionary for JSON.

    Raises:
        ValueError: if the rows of a step do not divide by the devices, or `toto pretrain` would refuse the settings.
    """
    import torch

    from modeling_toto.mup import hidden_matrices
    from training.architectures import make_model, training_flops
    from training.engine.objective import accumulation_steps
    from training.engine.optim import require_muon_fits
    from training.pretrain import row_layout
    from training.rows.shard_rows import HELD_OUT

    config, is_sharded = row_layout(model, None, False), args.sharding == "fsdp2"
    if optim.optimizer == "muon":
        require_muon_fits(model.architecture, config, is_sharded)
    with torch.device("meta"):
        net = make_model(model.architecture, config)
    count, flops = net.num_parameters(), training_flops(net, config)
    by_muon = sum(weight.numel() for weight in hidden_matrices(net)) if optim.optimizer == "muon" else 0
    _require_equal_shares(data.tokens_per_step, config.num_frames * config.tokens_per_frame, args.gpus)
    micro, accumulation = accumulation_steps(data, config.num_frames * config.tokens_per_frame, args.gpus)
    tokens = run.max_steps * data.tokens_per_step
    speed = args.gpus * args.peak * args.mfu / flops
    common = {"gpus": args.gpus, "is_sharded": is_sharded, "precision": args.precision, "by_muon": by_muon}
    both = [memory_of(config, count, micro, accumulation, checkpointing=on, **common) for on in (False, True)]
    memory = both[run.gradient_checkpointing]
    sources = []
    for source in data.mixture():
        held, seen = tokens_of(source, config.tokens_per_frame, args.source_tokens), source.weight * tokens
        # A source without validation data of its own holds out some of its items.
        used = held and held * (1 if source.val_data or source.is_toyworld else 1 - 1 / HELD_OUT)
        fact = {"name": source.name, "weight": source.weight, "tokens": held, "tokens_seen": seen}
        sources.append(fact | {"epochs": seen / used if used else None, "shards_gb": 2e-9 * held if held else None})
    return {
        "preset": model.preset,
        "architecture": model.architecture,
        "parameters": count,
        "tokens": tokens,
        "steps": run.max_steps,
        "tokens_per_step": data.tokens_per_step,
        "rows_per_device": micro,
        "accumulation": accumulation,
        "flops_per_token": flops,
        "flops": flops * tokens,
        "tokens_per_second": speed,
        "hours": tokens / speed / 3600,
        "gpu_hours": args.gpus * tokens / speed / 3600,
        "gradient_checkpointing": run.gradient_checkpointing,
        "memory_gb": {name: size / 1e9 for name, size in memory.items()},
        "memory_total_gb": sum(memory.values()) / 1e9,
        "memory_checkpointed_gb": sum(both[True].values()) / 1e9,
        "fits": sum(memory.values()) < USABLE * args.memory,
        "checkpoint_gb": 12e-9 * count - 4e-9 * by_muon,
        "sources": sources,
        "assumed": {
            "gpus": args.gpus,
            "peak_tflops": args.peak / 1e12,
            "memory_gb": args.memory / 1e9,
            "mfu": args.mfu,
            "precision": args.precision,
            "sharding": args.sharding,
        },
    }


def block_bytes(config, precision: str) -> int:
    """Bytes per token that a block stores for its backward pass (modeling_toto/block_toto.py).

    The residual stream before and after the attention is stored in float32; queries, keys, values, the output of the
    attention, and the gate and up projections are stored in `precision` ("bf16" or "fp32").
    """
    size = 2 if precision == "bf16" else 4
    return 4 * 2 * config.hidden_size + size * (4 * config.hidden_size + 2 * config.intermediate_size)


def memory_of(
    config,
    parameters: int,
    rows: int,
    accumulation: int,
    *,
    checkpointing: bool,
    gpus: int,
    is_sharded: bool,
    precision: str,
    by_muon: int = 0,
) -> dict[str, float]:
    """Bytes on one of `gpus` devices by purpose, for micro-batches of `rows` rows; computed, not measured on a GPU.

    weights, moments: float32; AdamW has two moments, Muon one; Muon trains `by_muon` of the parameters.
    gradients: float32, in the buckets of DDP; FSDP2 also holds them unsharded while it accumulates.
    activations: `block_bytes` of every block; with gradient checkpointing, the residual stream between the blocks and
        `block_bytes` of one block.
    logits: 0, since the loss computes them in chunks.
    work: allocations of the backward pass of one block (4 MLP widths and 5 widths in `precision`, 4 widths in float32),
        the gradient of the head in float32, and the weights of one block cast to `precision`. FSDP2 prefetches the next
        block, which adds the weights and gradients of two blocks, and the embeddings twice, all in float32.
    """
    d, width, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    is_sharded = is_sharded and gpus > 1
    share = gpus if is_sharded else 1
    tokens, size = rows * config.max_position_embeddings, 2 if precision == "bf16" else 4
    block, head, kept = 4 * d * d + 3 * d * width, config.vocab_size * d, block_bytes(config, precision)
    gradients = 4 * parameters / share
    if is_sharded:
        gradients += 4 * parameters if accumulation > 1 else 0
    copies = size * block + (4 * (4 * block + 2 * head) if is_sharded else 0)
    return {
        "weights": 4 * parameters / share,
        "gradients": gradients,
        "moments": (8 * parameters - 4 * by_muon) / share,
        "activations": tokens * (4 * layers * d + kept if checkpointing else layers * kept),
        "logits": 0,
        "work": tokens * (size * (4 * width + 5 * d) + 4 * 4 * d) + 4 * head + copies,
    }


def _require_equal_shares(tokens_per_step: int, tokens_per_row: int, gpus: int) -> None:
    """Raise ValueError if the rows of a step do not divide by the devices; the message names numbers that fit."""
    rows = tokens_per_step // tokens_per_row
    fit = [n for n in range(1, rows + 1) if rows % n == 0]
    if rows and rows * tokens_per_row == tokens_per_step and gpus not in fit:
        near = sorted(sorted(fit, key=lambda n: abs(n - gpus))[:2])
        up = -(-rows // gpus) * gpus * tokens_per_row
        raise ValueError(
            f"A step has {rows} rows, which {gpus} devices cannot share equally; use {' or '.join(map(str, near))} "
            f"devices, or --tokens_per_step {up}."
        )


def tokens_of(source: Source, tokens_per_frame: int, given: list[str]) -> float | None:
    """Tokens of a source: from `given` (NAME=NUMBER), from its shards, or of the paper's dataset of that name."""
    from tokenization.shards.format import read_manifest

    named = dict(pair.split("=", 1) for pair in given)
    if source.is_toyworld:  # endless
        return None
    if source.name in named:
        return float(named[source.name])
    if source.is_shards:
        return float(read_manifest(source.data)["num_tokens"])
    paper = PAPER_TOKENS.get(source.name)
    return paper and paper * tokens_per_frame / 256


def page(found: dict) -> str:
    """The plan of one recipe as text."""
    assumed, gpus = found["assumed"], found["assumed"]["gpus"]
    memory = ", ".join(f"{name} {size:.1f}" for name, size in found["memory_gb"].items())
    total, checkpointed = found["memory_total_gb"], found["memory_checkpointed_gb"]
    fit = "fits"
    if not found["fits"]:
        fit = "DOES NOT FIT: lower --per_device_batch_size, or use --gradient_checkpointing or --sharding fsdp2"
    sharding = "every device holds all weights" if assumed["sharding"] == "ddp" else "weights sharded by FSDP2"
    lines = [
        f"model      {found['preset']} ({found['architecture']}), {found['parameters'] / 1e6:,.1f} M parameters",
        f"training   {found['steps']:,} steps of {found['tokens_per_step']:,} tokens, "
        f"{found['tokens'] / 1e9:,.1f} B in total",
        f"compute    {found['flops_per_token'] / 1e9:.3g} GFLOPs per token (with attention and vocabulary), "
        f"{found['flops']:.2e} in total",
        f"step       {found['accumulation']} x {found['rows_per_device']} rows on each of {gpus} devices",
        f"time       {found['hours']:,.1f} hours ({found['hours'] / 24:,.1f} days), "
        f"{found['gpu_hours']:,.0f} GPU-hours, {found['tokens_per_second']:,.0f} tokens/s",
        f"memory     {total:.1f} GB per device of {assumed['memory_gb']:.0f}: {fit}",
        f"           {memory}",
    ]
    if not found["gradient_checkpointing"]:
        lines.append(f"           {checkpointed:.1f} GB with --gradient_checkpointing")
    lines.append(f"checkpoint {found['checkpoint_gb']:.1f} GB, weights and moments")
    for source in found["sources"]:
        held = f"{source['tokens_seen'] / 1e9:,.3g} B tokens needed"
        if source["tokens"]:
            held = f"{source['tokens'] / 1e9:,.2f} B tokens ({source['shards_gb']:,.1f} GB as shards), "
            held += f"{source['epochs']:,.2f} epochs"
        lines.append(f"source     {source['name']} {source['weight']:.0%}: {held}")
    if any(source["tokens"] is None for source in found["sources"]):
        lines.append("           tokens unknown: give --source_tokens NAME=NUMBER for epochs and disk")
    lines += [
        f"assumed    {assumed['peak_tflops']:,.4g} TFLOP/s dense {assumed['precision']} per device at "
        f"{assumed['mfu']:.0%} MFU; without validation, checkpoints and waiting;",
        f"           {sharding}; float32 weights and moments; {USABLE:.0%} of the memory usable;",
        "           2 bytes per token on disk; the paper's datasets by its Table 2, every 4th of 30 frames per second",
    ]
    if found["architecture"] in ("gpt2", "mamba"):
        lines.append(f"           memory is that of a Toto of this size: {found['architecture']} also stores logits")
    return "\n".join(lines)


def table(found: dict[str, dict]) -> str:
    """The plans of several presets as text, one line each."""
    assumed = next(iter(found.values()))["assumed"]
    lines = [
        f"{assumed['gpus']} devices of {assumed['peak_tflops']:,.4g} TFLOP/s {assumed['precision']} at "
        f"{assumed['mfu']:.0%} MFU and {assumed['memory_gb']:.0f} GB, {assumed['sharding']}",
        f"{'preset':<8}{'parameters':>12}{'B tokens':>10}{'FLOPs':>10}{'hours':>9}{'GPU-hours':>11}{'rows':>8}"
        f"{'GB per device':>15}{'checkpoint':>12}",
    ]
    for name, p in found.items():
        rows = f"{p['accumulation']} x {p['rows_per_device']}"
        lines.append(
            f"{name:<8}{p['parameters'] / 1e6:>10,.1f} M{p['tokens'] / 1e9:>10,.0f}{p['flops']:>10.1e}"
            f"{p['hours']:>9,.1f}{p['gpu_hours']:>11,.0f}{rows:>8}{p['memory_total_gb']:>15.1f}"
            f"{p['checkpoint_gb']:>9.1f} GB"
            f"{'' if p['fits'] else '  DOES NOT FIT'}"
        )
    return "\n".join(lines)


def measured(run: Path, mfu: float) -> dict:
    """Measured tokens/s of a run, and the prediction for its device: MFU x peak / FLOPs per token.

    The peak is the one that the run measured at its start.

    Raises:
        ValueError: if the run has logged too few rows.
        FileNotFoundError: if `run` is not a run folder.
    """
    from statistics import median

    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(f"{run} is not a run folder, it holds no metrics.jsonl; give the folder of a run.")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "mfu" in row][1:]  # the first includes the warm-up
    require(bool(rows), f"{run} has logged too few steps; train longer, or set a lower --logging_steps.")
    speed, reached = (median(row[key] for row in rows) for key in ("tokens_per_second", "mfu"))
    flops = rows[-1]["flops"] / rows[-1]["tokens"]
    peak = median(row["tokens_per_second"] * flops / row["mfu"] for row in rows)
    predicted = mfu * peak / flops
    facts = {"peak_gflops": peak / 1e9, "flops_per_token": flops, "measured_mfu": reached, "assumed_mfu": mfu}
    return facts | {"predicted": predicted, "measured": speed, "measured_over_predicted": speed / predicted}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    kinds = (PlanArgs, ModelArgs, DataArgs, PretrainRunArgs, PretrainOptimArgs)
    args, *recipe = parse(kinds, argv, "toto plan", DESCRIPTION)
    if args.measured is not None:
        others = typed_flags(argv) - {"measured", "mfu", "json"}
        refuse_idle(argv, tuple(sorted(others)), "with --measured, which reads a run")
    if args.all:
        refuse_idle(argv, ("preset", "config"), "with --all, which uses every preset as it is")
    model, data, run, optim = shrink(*recipe) if recipe[2].scale == "tiny" else recipe
    if args.measured is not None:
        found = measured(Path(args.measured), args.mfu)
        text = (
            f"{args.measured}: {found['measured']:,.0f} tokens/s measured, {found['predicted']:,.0f} predicted at "
            f"{found['assumed_mfu']:.1%} MFU of {found['peak_gflops']:,.1f} GFLOP/s and "
            f"{found['flops_per_token'] / 1e6:.2f} MFLOPs per token: ratio {found['measured_over_predicted']:.2f}; "
            f"the run reached {found['measured_mfu']:.1%} MFU"
        )
    elif args.all:
        found = {preset: plan(replace(model, preset=preset, config="{}"), data, run, optim, args) for preset in ALL}
        text = table(found)
    else:
        found = plan(model, data, run, optim, args)
        text = page(found)
    print(json.dumps(found, indent=1) if args.json else text)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
