"""`toto plan`: what a recipe costs: tokens, epochs, FLOPs, hours, memory, disk; every assumption is printed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from .args import DataArgs, ModelArgs, OptimArgs, RunArgs, option, parse, require

# Dense bf16 peak in TFLOP/s and memory in GB, from the makers' data sheets.
GPUS = {"a100": (312, 80), "h100": (989, 80), "h200": (989, 141), "b200": (2250, 180)}
# The paper's pool (Table 2): tokens at 30 frames a second for videos, of which training takes every fourth frame.
PAPER_TOKENS = {"imagenet21k": 3.6e9, "kinetics600": 41.3e9 / 4, "ego4d": 103e9 / 4, "howto100m": 2560e9 / 4}
PAPER_TOKENS |= {"imagenet1k": 1_281_167 * 256}
ALL = ("tiny", "base", "large", "1b", "a1", "a2", "a3", "a4", "a5", "a6")


@dataclass(frozen=True)
class PlanArgs:
    """The machines to plan for. All flags of `toto pretrain` change the recipe, as they do there."""

    gpus: int = option(8, "number of devices")
    gpu: str = option("h100", f"kind of device: {', '.join(GPUS)}; or give --peak_tflops and --memory_gb")
    peak_tflops: float | None = option(None, "dense bf16 peak of a device, in TFLOP/s")
    memory_gb: float | None = option(None, "memory of a device")
    mfu: float = option(0.4, "share of the peak that training reaches (assumed; --measured tells what a run here did)")
    sharding: str = option("ddp", "ddp: every device holds everything; fsdp2: weights, gradients, moments shared out")
    source_tokens: list[str] = option([], "NAME=NUMBER: tokens of a source, where neither shards nor the paper tell")
    all: bool = option(False, "one line for each preset instead")
    json: bool = option(False, "print JSON")
    measured: str | None = option(None, "run folder: set its measured tokens/s against this model of throughput")

    def __post_init__(self):
        require(self.gpus > 0, "--gpus must be above 0.")
        require(0 < self.mfu <= 1, "--mfu must lie between 0 and 1.")
        require(self.sharding in ("ddp", "fsdp2"), f"--sharding must be ddp or fsdp2, not '{self.sharding}'.")
        known = self.gpu in GPUS or (self.peak_tflops is not None and self.memory_gb is not None)
        require(
            known, f"--gpu {self.gpu} is not known; choose {', '.join(GPUS)}, or give --peak_tflops and --memory_gb."
        )

    @property
    def peak(self) -> float:
        """FLOPs a second of a device."""
        return 1e12 * (self.peak_tflops or GPUS[self.gpu][0])

    @property
    def memory(self) -> float:
        """Bytes of a device."""
        return 1e9 * (self.memory_gb or GPUS[self.gpu][1])


def memory_of(config, parameters: int, rows: int, args: PlanArgs, checkpointing: bool) -> dict[str, float]:
    """Bytes on one device.

    Weights, gradients and AdamW's two moments in float32; autocast's bfloat16 copies of the weights. Of every token a
    block keeps, in bfloat16, 6 widths and 2 MLP widths (modeling_toto/block_toto.py); with gradient checkpointing one
    width, and one block's whole at a time. Logits are never held: the loss works through them in chunks.
    """
    share = args.gpus if args.sharding == "fsdp2" else 1
    tokens, d, layers = rows * config.max_position_embeddings, config.hidden_size, config.num_hidden_layers
    block = 2 * (6 * d + 2 * config.intermediate_size)
    kept = layers * 2 * d + block if checkpointing else layers * block
    # Sharded weights are gathered two blocks at a time, the next while one is at work.
    copies = 2 * parameters if share == 1 else 2 * 2 * (parameters // layers)
    return {
        "weights": 4 * parameters / share,
        "gradients": 4 * parameters / share,
        "moments": 8 * parameters / share,
        "bf16 copies": copies,
        "activations": tokens * kept,
    }


def plan(model: ModelArgs, data: DataArgs, run: RunArgs, args: PlanArgs) -> dict:
    """Everything `toto plan` tells of one recipe, as JSON.

    Raises:
        ValueError: rows that the devices cannot share equally.
    """
    from modeling_toto import TotoConfig

    from .architectures import flops_per_token, parameters, peer_config
    from .args import json_fields
    from .loop import accumulation_steps

    known = ["hidden_size", *TotoConfig.__dataclass_fields__, "rope_theta"]
    config = TotoConfig.from_preset(model.preset, **json_fields(model.config, "--config", known))
    is_peer = model.architecture in ("gpt2", "mamba")
    count = parameters(peer_config(model.architecture, config) if is_peer else config)
    micro, accumulation = accumulation_steps(data, config.num_frames * config.tokens_per_frame, args.gpus)
    flops = flops_per_token(config)
    tokens = run.max_steps * data.tokens_per_step
    speed = args.gpus * args.peak * args.mfu / flops
    memory = memory_of(config, count, micro, args, run.gradient_checkpointing)
    given = dict(pair.split("=", 1) for pair in args.source_tokens)
    sources = []
    for source in data.mixture():
        held = _tokens_of(source, given)
        seen = source.weight * tokens
        fact = {"name": source.name, "weight": source.weight, "tokens": held, "tokens_seen": seen}
        sources.append(fact | {"epochs": seen / held if held else None, "shards_gb": 2e-9 * held if held else None})
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
        "memory_gb": {name: size / 1e9 for name, size in memory.items()},
        "memory_total_gb": sum(memory.values()) / 1e9,
        "fits": sum(memory.values()) < 0.9 * args.memory,
        "checkpoint_gb": 12e-9 * count,
        "sources": sources,
    }


def _tokens_of(source, given: dict[str, str]) -> float | None:
    """Tokens that a source holds: as given, of its shards, or of the paper's data set of that name."""
    if source.name in given:
        return float(given[source.name])
    if source.is_shards:
        return json.loads((Path(source.data) / "manifest.json").read_text())["num_tokens"]
    return PAPER_TOKENS.get(source.name)


def text(found: dict, args: PlanArgs) -> str:
    """The plan as a page."""
    memory = ", ".join(f"{name} {size:.1f}" for name, size in found["memory_gb"].items())
    sharding = "every device holds everything" if args.sharding == "ddp" else "FSDP2 shares weights and moments out"
    advice = "lower --per_device_batch_size, add --gradient_checkpointing, or take --sharding fsdp2"
    fit = "fits" if found["fits"] else f"DOES NOT FIT: {advice}"
    lines = [
        f"{found['preset']} ({found['architecture']}): {found['parameters'] / 1e6:,.1f} M parameters",
        f"training   {found['steps']:,} steps of {found['tokens_per_step']:,} tokens, "
        f"{found['tokens'] / 1e9:,.1f} B tokens in all",
        f"compute    {found['flops_per_token'] / 1e9:.3g} GFLOP a token, {found['flops']:.2e} FLOPs in all",
        f"a step     {found['rows_per_device']} rows at a time on each of {args.gpus} devices, "
        f"{found['accumulation']} times",
        f"time       {found['hours']:,.1f} hours ({found['hours'] / 24:,.1f} days), "
        f"{found['gpu_hours']:,.0f} GPU-hours, {found['tokens_per_second']:,.0f} tokens/s",
        f"memory     {found['memory_total_gb']:.1f} GB a device of {args.memory / 1e9:.0f} ({memory}): {fit}",
        f"checkpoint {found['checkpoint_gb']:.1f} GB (weights and moments)",
    ]
    for source in found["sources"]:
        held = "tokens not known (--source_tokens NAME=NUMBER)"
        if source["tokens"]:
            held = f"{source['tokens'] / 1e9:,.2f} B tokens, {source['shards_gb']:,.1f} GB of shards, "
            held += f"{source['epochs']:,.2f} epochs"
        lines.append(f"source     {source['name']}, {source['weight']:.1%} of the rows: {held}")
    lines += [
        f"assumed    {args.peak / 1e12:,.0f} TFLOP/s dense bf16 a device at {args.mfu:.0%} MFU, and no time for "
        "validation, data or checkpoints;",
        f"           {sharding}; float32 weights and moments, bf16 activations; 2 bytes a token on disk;",
        "           the paper's data sets by its Table 2, of whose 30 frames a second every fourth is used",
    ]
    return "\n".join(lines)


def overview(plans: dict[str, dict], args: PlanArgs, steps: int) -> str:
    """A line for each preset."""
    head = ("parameters", "B tokens", "FLOPs", "hours", "GPU-hours", "GB a device")
    lines = [f"on {args.gpus} x {args.gpu} at {args.mfu:.0%} MFU, {args.sharding}, {steps:,} steps"]
    lines.append(f"{'preset':<8}" + "".join(f"{name:>13}" for name in head))
    for name, p in plans.items():
        cells = [f"{p['parameters'] / 1e6:,.1f} M", f"{p['tokens'] / 1e9:,.0f}", f"{p['flops']:.1e}"]
        cells += [f"{p['hours']:,.1f}", f"{p['gpu_hours']:,.0f}", f"{p['memory_total_gb']:.1f}"]
        lines.append(f"{name:<8}" + "".join(f"{c:>13}" for c in cells) + ("" if p["fits"] else "  does not fit"))
    return "\n".join(lines)


def measured(run: Path, mfu: float) -> dict:
    """A run's own tokens/s beside what this model of throughput says for the device it ran on.

    The model: tokens/s = MFU x peak / FLOPs a token. The peak is the one that the run measured, which its rows hold.
    Raises:
        ValueError: no row that says so.
    """
    from statistics import median

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "mfu" in row][1:]  # the first holds the warm-up
    require(bool(rows), f"{run} has logged too little; train some more steps, or set a lower --logging_steps.")
    speed, reached = (median(row[key] for row in rows) for key in ("tokens_per_second", "mfu"))
    peak = median(row["tokens_per_second"] * row["flops"] / row["tokens"] / row["mfu"] for row in rows)
    flops = rows[-1]["flops"] / rows[-1]["tokens"]
    predicted = mfu * peak / flops
    facts = {"peak_gflops": peak / 1e9, "flops_per_token": flops, "measured_mfu": reached, "assumed_mfu": mfu}
    return facts | {"predicted": predicted, "measured": speed, "measured_over_predicted": speed / predicted}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    description = "What a recipe costs before it is run. " + PlanArgs.__doc__.split(". ")[1]
    kinds = (PlanArgs, ModelArgs, DataArgs, RunArgs, OptimArgs)
    args, model, data, run, _ = parse(kinds, argv, "toto plan", description)

    from dataclasses import replace

    if args.measured is not None:
        found = measured(Path(args.measured), args.mfu)
        told = (
            f"{args.measured}: {found['measured']:,.0f} tokens/s measured, {found['predicted']:,.0f} predicted "
            f"({found['measured_over_predicted']:.2f}): {found['peak_gflops']:,.0f} GFLOP/s peak, "
            f"{found['flops_per_token'] / 1e6:.1f} MFLOP a token, {found['measured_mfu']:.0%} MFU measured, "
            f"{found['assumed_mfu']:.0%} assumed"
        )
    elif args.all:
        found = {}
        for preset in ALL:
            tiny = replace(data, tokens_per_step=2**20) if preset == "tiny" else data
            found[preset] = plan(replace(model, preset=preset, config="{}"), tiny, run, args)
        told = overview(found, args, run.max_steps)
    else:
        found = plan(model, data, run, args)
        told = text(found, args)
    print(json.dumps(found, indent=1) if args.json else told)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
