"""`toto plan`: the cost of a recipe before it is run, in tokens, epochs, FLOPs, hours, memory and disk space."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from training.args import (
    DataArgs,
    ModelArgs,
    OptimArgs,
    PretrainRunArgs,
    Source,
    option,
    parse,
    refuse_idle,
    require,
    require_choice,
    require_positive,
    typed_flags,
)
from training.tiny_scale import shrink

DESCRIPTION = (
    "The cost of a recipe before it is run: parameters, epochs of every source, FLOPs, hours, memory per device, disk "
    "space. All flags of toto pretrain change the recipe as they do there."
)
# Dense bf16 peak in TFLOP/s and memory in GB, from the manufacturer's data sheets.
GPUS = {"a100": (312, 80), "h100": (989, 80), "h200": (989, 141), "b200": (2250, 180)}
# Tokens of the paper's datasets at 16 x 16 per frame (Table 2), which counts videos at 30 frames per second; training
# takes every fourth frame.
PAPER_TOKENS = {"imagenet21k": 3.6e9, "kinetics600": 41.3e9 / 4, "ego4d": 103e9 / 4, "howto100m": 2560e9 / 4}
PAPER_TOKENS |= {"imagenet1k": 1_281_167 * 256}
ALL = ("tiny", "base", "large", "1b", "a1", "a2", "a3", "a4", "a5", "a6")
# Usable share of a device's memory; the rest is for fragmentation, the CUDA context and buffers of NCCL.
USABLE = 0.9


@dataclass(frozen=True)
class PlanArgs:
    """The machines to plan for."""

    gpus: int = option(8, "number of devices")
    gpu: str = option("h100", f"kind of device: {', '.join(GPUS)}; --peak_tflops and --memory_gb override it")
    peak_tflops: float | None = option(None, "dense peak of a device in --precision, in TFLOP/s")
    memory_gb: float | None = option(None, "memory of a device, in GB")
    mfu: float = option(0.4, "assumed share of the peak that training reaches (--measured reports that of a run)")
    precision: str = option("bf16", "of products and saved activations: bf16, or fp32, which needs --peak_tflops")
    sharding: str = option("ddp", "ddp: no sharding; fsdp2: weights, gradients and moments are sharded")
    source_tokens: list[str] = option(
        [], "NAME=NUMBER: tokens of a source, if neither its shards nor the paper give it"
    )
    all: bool = option(False, "print a table of all presets instead")
    json: bool = option(False, "print JSON")
    measured: str | None = option(None, "run folder; compares its measured tokens/s with the predicted ones")

    def __post_init__(self):
        require_positive(self, "gpus")
        require(0 < self.mfu <= 1, f"--mfu is {self.mfu}; it must be above 0 and at most 1.")
        require_choice(self, "sharding", ("ddp", "fsdp2"))
        require_choice(self, "precision", ("bf16", "fp32"))
        known = self.gpu in GPUS or (self.peak_tflops is not None and self.memory_gb is not None)
        kinds = ", ".join(GPUS)
        require(known, f"--gpu is {self.gpu}; choose {kinds}, or pass --peak_tflops and --memory_gb.")
        fp32 = self.precision == "bf16" or self.peak_tflops is not None
        require(fp32, "The known peaks are those of bf16; pass --peak_tflops for --precision fp32.")
        for pair in self.source_tokens:
            name, _, number = pair.partition("=")
            sound = name and number.replace(".", "", 1).replace("e", "", 1).replace("+", "", 1).isdigit()
            require(bool(sound), f"--source_tokens is '{pair}'; it must be NAME=NUMBER, such as ego4d=2.5e10.")

    @property
    def peak(self) -> float:
        """FLOPs per second of a device."""
        return 1e12 * (self.peak_tflops or GPUS[self.gpu][0])

    @property
    def memory(self) -> float:
        """Bytes of a device."""
        return 1e9 * (self.memory_gb or GPUS[self.gpu][1])


def plan(model: ModelArgs, data: DataArgs, run: PretrainRunArgs, args: PlanArgs) -> dict:
    """The plan of one recipe, as JSON.

    Raises:
        ValueError: the rows of a step cannot be divided into the devices, or `toto pretrain` would refuse the settings.
    """
    import torch

    from training.architectures import make_model, training_flops
    from training.engine.objective import accumulation_steps
    from training.pretrain import row_layout
    from training.rows.shard_rows import HELD_OUT

    config = row_layout(model, None, False)
    with torch.device("meta"):
        net = make_model(model.architecture, config)
    count, flops = net.num_parameters(), training_flops(net, config)
    _require_equal_shares(data.tokens_per_step, config.num_frames * config.tokens_per_frame, args.gpus)
    micro, accumulation = accumulation_steps(data, config.num_frames * config.tokens_per_frame, args.gpus)
    tokens = run.max_steps * data.tokens_per_step
    speed = args.gpus * args.peak * args.mfu / flops
    machine = {"gpus": args.gpus, "is_sharded": args.sharding == "fsdp2", "precision": args.precision}
    both = [memory_of(config, count, micro, accumulation, checkpointing=on, **machine) for on in (False, True)]
    memory = both[run.gradient_checkpointing]
    sources = []
    for source in data.mixture():
        held, seen = tokens_of(source, config.tokens_per_frame, args.source_tokens), source.weight * tokens
        # Without separate validation data, a source loses a part of its items.
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
        "checkpoint_gb": 12e-9 * count,
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
    """Bytes per token that a block saves for its backward pass (modeling_toto/block_toto.py).

    In float32 the residual stream before and after the attention; in `precision` ("bf16" or "fp32") queries, keys,
    values, the output of the attention, and the gate and up projections.
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
) -> dict[str, float]:
    """Bytes on one of `gpus` devices by purpose, for micro-batches of `rows` rows; counted, not measured on a GPU.

    weights, moments: float32; AdamW has two moments.
    gradients: float32, under DDP in its buckets; while FSDP2 accumulates, it also holds them unsharded.
    activations: `block_bytes` of every block; with gradient checkpointing the residual stream between the blocks, and
        `block_bytes` of one block.
    logits: none, since the loss computes them in chunks.
    work: what the backward pass of one block allocates (4 MLP widths and 5 widths in `precision`, 4 widths in
        float32), the head's gradient in float32, and a block's weights cast to `precision`. FSDP2 gathers the next
        block early: two blocks' weights and gradients more, and the embeddings twice, all in float32.
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
        "moments": 8 * parameters / share,
        "activations": tokens * (4 * layers * d + kept if checkpointing else layers * kept),
        "logits": 0,
        "work": tokens * (size * (4 * width + 5 * d) + 4 * 4 * d) + 4 * head + copies,
    }


def _require_equal_shares(tokens_per_step: int, tokens_per_row: int, gpus: int) -> None:
    """Raises ValueError if the rows of a step cannot be divided into the devices; it suggests numbers that work."""
    rows = tokens_per_step // tokens_per_row
    fit = [n for n in range(1, rows + 1) if rows % n == 0]
    if rows and rows * tokens_per_row == tokens_per_step and gpus not in fit:
        near = sorted(sorted(fit, key=lambda n: abs(n - gpus))[:2])
        up = -(-rows // gpus) * gpus * tokens_per_row
        raise ValueError(
            f"A step has {rows} rows, which is not a multiple of {gpus} devices; take {' or '.join(map(str, near))} "
            f"devices, or --tokens_per_step {up}."
        )


def tokens_of(source: Source, tokens_per_frame: int, given: list[str]) -> float | None:
    """Tokens of a source: `given` (NAME=NUMBER), those of its shards, or of the paper's dataset of that name."""
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
    checkpointing = "" if found["gradient_checkpointing"] else f"; {checkpointed:.1f} with --gradient_checkpointing"
    fit = "fits"
    if not found["fits"]:
        fit = "DOES NOT FIT: lower --per_device_batch_size, or take --gradient_checkpointing or --sharding fsdp2"
    sharding = "every device holds all weights" if assumed["sharding"] == "ddp" else "weights shared out by FSDP2"
    lines = [
        f"model      {found['preset']} ({found['architecture']}), {found['parameters'] / 1e6:,.1f} M parameters",
        f"training   {found['steps']:,} steps of {found['tokens_per_step']:,} tokens, "
        f"{found['tokens'] / 1e9:,.1f} B in all",
        f"compute    {found['flops_per_token'] / 1e9:.3g} GFLOPs a token (attention and vocabulary in), "
        f"{found['flops']:.2e} in all",
        f"a step     {found['accumulation']} x {found['rows_per_device']} rows on each of {gpus} devices",
        f"time       {found['hours']:,.1f} hours ({found['hours'] / 24:,.1f} days), "
        f"{found['gpu_hours']:,.0f} GPU-hours, {found['tokens_per_second']:,.0f} tokens/s",
        f"memory     {total:.1f} GB a device of {assumed['memory_gb']:.0f}: {fit}",
        f"           {memory}{checkpointing}",
        f"checkpoint {found['checkpoint_gb']:.1f} GB, weights and moments",
    ]
    for source in found["sources"]:
        held = f"{source['tokens_seen'] / 1e9:,.3g} B tokens are asked of it"
        if source["tokens"]:
            held = f"{source['tokens'] / 1e9:,.2f} B tokens ({source['shards_gb']:,.1f} GB as shards), "
            held += f"{source['epochs']:,.2f} epochs"
        lines.append(f"source     {source['name']} {source['weight']:.0%}: {held}")
    if any(source["tokens"] is None for source in found["sources"]):
        lines.append("           tokens not known to us: --source_tokens NAME=NUMBER gives epochs and disk")
    lines += [
        f"assumed    {assumed['peak_tflops']:,.4g} TFLOP/s dense {assumed['precision']} a device at "
        f"{assumed['mfu']:.0%} MFU; no time for validation, checkpoints, waiting;",
        f"           {sharding}; float32 weights and moments; full at {USABLE:.0%} of the memory;",
        "           2 bytes a token on disk; the paper's data sets by its Table 2, every fourth of 30 frames a second",
    ]
    if found["architecture"] in ("gpt2", "mamba"):
        lines.append(f"           memory is a Toto's of this size: {found['architecture']} keeps more, its logits too")
    return "\n".join(lines)


def table(found: dict[str, dict]) -> str:
    """The plans of several presets as text, one line each."""
    assumed = next(iter(found.values()))["assumed"]
    lines = [
        f"{assumed['gpus']} devices of {assumed['peak_tflops']:,.4g} TFLOP/s {assumed['precision']} at "
        f"{assumed['mfu']:.0%} MFU and {assumed['memory_gb']:.0f} GB, {assumed['sharding']}",
        f"{'preset':<8}{'parameters':>12}{'B tokens':>10}{'FLOPs':>10}{'hours':>9}{'GPU-hours':>11}{'rows':>8}"
        f"{'GB a device':>13}{'checkpoint':>12}",
    ]
    for name, p in found.items():
        rows = f"{p['accumulation']} x {p['rows_per_device']}"
        lines.append(
            f"{name:<8}{p['parameters'] / 1e6:>10,.1f} M{p['tokens'] / 1e9:>10,.0f}{p['flops']:>10.1e}"
            f"{p['hours']:>9,.1f}{p['gpu_hours']:>11,.0f}{rows:>8}{p['memory_total_gb']:>13.1f}"
            f"{p['checkpoint_gb']:>9.1f} GB"
            f"{'' if p['fits'] else '  DOES NOT FIT'}"
        )
    return "\n".join(lines)


def measured(run: Path, mfu: float) -> dict:
    """The measured tokens/s of a run, and those predicted for its device: MFU x peak / FLOPs per token.

    The peak is the one that the run measured at its start.

    Raises:
        ValueError: too few rows. FileNotFoundError: not a run folder.
    """
    from statistics import median

    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it holds no metrics.jsonl.")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "mfu" in row][1:]  # the first holds the warm-up
    require(bool(rows), f"{run} has too few log lines; train for more steps, or lower --logging_steps.")
    speed, reached = (median(row[key] for row in rows) for key in ("tokens_per_second", "mfu"))
    flops = rows[-1]["flops"] / rows[-1]["tokens"]
    peak = median(row["tokens_per_second"] * flops / row["mfu"] for row in rows)
    predicted = mfu * peak / flops
    facts = {"peak_gflops": peak / 1e9, "flops_per_token": flops, "measured_mfu": reached, "assumed_mfu": mfu}
    return facts | {"predicted": predicted, "measured": speed, "measured_over_predicted": speed / predicted}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args, *recipe = parse((PlanArgs, ModelArgs, DataArgs, PretrainRunArgs, OptimArgs), argv, "toto plan", DESCRIPTION)
    if args.measured is not None:
        others = typed_flags(argv) - {"measured", "mfu", "json"}
        refuse_idle(argv, tuple(sorted(others)), "with --measured, which reads a run")
    if args.all:
        refuse_idle(argv, ("preset", "config"), "with --all, which takes every preset as it is")
    model, data, run, _ = shrink(*recipe) if recipe[2].scale == "tiny" else recipe
    if args.measured is not None:
        found = measured(Path(args.measured), args.mfu)
        text = (
            f"{args.measured}: {found['measured']:,.0f} tokens/s measured, {found['predicted']:,.0f} predicted at "
            f"{found['assumed_mfu']:.1%} MFU of {found['peak_gflops']:,.1f} GFLOP/s and "
            f"{found['flops_per_token'] / 1e6:.2f} MFLOPs a token: ratio {found['measured_over_predicted']:.2f}; "
            f"it reached {found['measured_mfu']:.1%} MFU"
        )
    elif args.all:
        found = {preset: plan(replace(model, preset=preset, config="{}"), data, run, args) for preset in ALL}
        text = table(found)
    else:
        found = plan(model, data, run, args)
        text = page(found)
    print(json.dumps(found, indent=1) if args.json else text)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
