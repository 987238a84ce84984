"""`toto plan`: estimates the cost of a recipe in tokens, epochs, FLOPs, hours, memory and disk."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tokenization.sources.named import without
from tokenization.terminal.next_command import say_next
from training.args import DataArgs, ModelArgs, PretrainOptimArgs, PretrainRunArgs, Source
from training.costs import ATTENTION, MOVED, PRODUCTS, TRAFFIC, Step, memory_of, seconds_per_token
from training.engine.data_sheets import GPUS, Gpu
from training.flags import option, parse, refuse_idle, require, require_positive, typed_flags
from training.tiny_scale import shrink

DESCRIPTION = (
    "Estimate the cost of a recipe: parameters, epochs of every source, FLOPs, hours, memory per device, disk. "
    "All flags of toto pretrain are accepted and change the recipe in the same way."
)
# Tokens of the paper's datasets at 16 x 16 per frame (Table 2). It counts videos at 30 frames per second; training
# uses every fourth.
PAPER_TOKENS = {"imagenet21k": 3.6e9, "kinetics600": 41.3e9 / 4, "ego4d": 103e9 / 4, "howto100m": 2560e9 / 4}
PAPER_TOKENS |= {"imagenet1k": 1_281_167 * 256}
# Not in the paper: 0.24 M training clips of ten seconds, with four windows of 16 frames each (docs/datasets.md).
PAPER_TOKENS |= {"kinetics400": 240e3 * 4 * 4096}
ALL = ("tiny", "base", "large", "1b", "a1", "a2", "a3", "a4", "a5", "a6")
# Usable share of the memory of a device; the rest is fragmentation, the CUDA context and NCCL buffers.
USABLE = 0.9
# Bytes per second at which a checkpoint is written, hashed and flushed to the disk, while all devices wait. Ours:
# hashing ran at 1.4e9 on one core; the rest is a disk of ordinary speed.
CHECKPOINT_SPEED = 0.4e9
# Devices that are planned for without --gpus, if each of so many gets as many rows of a step as the recipe gives it.
DEFAULT_GPUS = 8
# Width below which a GPU's time goes into launching kernels, which the estimate leaves out. Ours.
SMALL = 512


@dataclass(frozen=True)
class PlanArgs:
    """The devices to plan for, and what is assumed about them."""

    gpus: int | None = option(
        None,
        f"number of devices (default: {DEFAULT_GPUS}, or the largest smaller number of which each has its "
        "per_device_batch_size of rows)",
    )
    gpu: str = option("h100", f"kind of device: {', '.join(GPUS)}; for others, give the next three flags")
    peak_tflops: float | None = option(None, "dense peak of one device in --precision, in TFLOP/s")
    memory_gb: float | None = option(None, "memory of one device, in GB")
    bandwidth_gbs: float | None = option(None, "memory bandwidth of one device, in GB/s")
    mfu: float | None = option(
        None,
        "share of the data sheet's peak that training reaches, as a log reports it; recomputation is not charged again "
        "(default: estimated by size, mode and device)",
    )
    precision: str = option("bf16", "precision of products and activations: bf16, or fp32, which needs --peak_tflops")
    sharding: str = option(
        "ddp", "ddp: every device holds all weights; fsdp2: weights, gradients and moments are sharded"
    )
    source_tokens: list[str] = option([], "NAME=NUMBER: tokens of a source that has no shards and is not in the paper")
    all: bool = option(False, "print a table of all presets instead")
    json: bool = option(False, "print JSON")
    measured: str | None = option(
        None, "run folder: print its measured tokens/s and MFU, and those that --mfu predicts"
    )

    def __post_init__(self):
        require_positive(self, "gpus", "peak_tflops", "memory_gb", "bandwidth_gbs")
        require(self.mfu is None or 0 < self.mfu <= 1, "--mfu must lie between 0 and 1.")
        require(self.sharding in ("ddp", "fsdp2"), f"--sharding must be ddp or fsdp2, not '{self.sharding}'.")
        require(self.precision in ("bf16", "fp32"), f"--precision must be bf16 or fp32, not '{self.precision}'.")
        known = self.gpu in GPUS or None not in (self.peak_tflops, self.memory_gb, self.bandwidth_gbs or self.mfu)
        require(
            known,
            f"--gpu {self.gpu} is unknown; choose {', '.join(GPUS)}, or give --peak_tflops, --memory_gb, and "
            "--bandwidth_gbs or --mfu.",
        )
        fp32 = self.precision == "bf16" or self.peak_tflops is not None
        require(fp32, "The known peaks are those of bf16; give --peak_tflops for --precision fp32.")
        for pair in self.source_tokens:
            name, _, number = pair.partition("=")
            sound = name and number.replace(".", "", 1).replace("e", "", 1).replace("+", "", 1).isdigit()
            require(bool(sound), f"--source_tokens '{pair}' must be NAME=NUMBER, such as ego4d=2.5e10.")

    @property
    def device(self) -> Gpu:
        """The device of `--gpu`, with the numbers of the other flags."""
        sheet = GPUS.get(self.gpu, Gpu(0, 0, 0, "", ""))
        given = {"tflops": self.peak_tflops, "memory_gb": self.memory_gb, "bandwidth_gbs": self.bandwidth_gbs}
        given = {key: value for key, value in given.items() if value is not None}
        source = ", ".join([f"{', '.join(given)} as given"] * bool(given) + [sheet.source] * bool(sheet.source))
        return replace(sheet, source=source, **given)


def plan(model: ModelArgs, data: DataArgs, run: PretrainRunArgs, optim: PretrainOptimArgs, args: PlanArgs) -> dict:
    """The plan of one recipe, as a dictionary for JSON.

    Raises:
        ValueError: if the rows of a step do not divide by the devices, or `toto pretrain` would refuse the settings.
    """
    import torch

    from modeling_toto.mup import hidden_matrices
    from training.architectures import make_model, training_flops
    from training.engine.compiling import compiles_by_default
    from training.engine.objective import accumulation_steps
    from training.engine.optim import require_muon_fits
    from training.pretrain import row_layout
    from training.rows.shard_rows import HELD_OUT

    config, is_sharded, device = row_layout(model, None, False), args.sharding == "fsdp2", args.device
    if optim.optimizer == "muon":
        require_muon_fits(model.architecture, config, is_sharded)
    # every device that is planned for is a CUDA device
    by_default = compiles_by_default(model.architecture, run.liger, is_cuda=True)
    compiled = by_default if run.compile is None else run.compile
    with torch.device("meta"):
        net = make_model(model.architecture, config)
    count, flops = net.num_parameters(), training_flops(net, config)
    by_muon = sum(weight.numel() for weight in hidden_matrices(net)) if optim.optimizer == "muon" else 0
    row = config.num_frames * config.tokens_per_frame
    gpus = args.gpus or _fitting_gpus(data, row)
    _require_equal_shares(data.tokens_per_step, row, gpus)
    micro, accumulation = accumulation_steps(data, row, gpus)
    step = Step(
        config=config,
        parameters=count,
        rows=micro,
        accumulation=accumulation,
        checkpointing=run.gradient_checkpointing,
        gpus=gpus,
        is_sharded=is_sharded,
        precision=args.precision,
        mode="compiled" if compiled else "eager",
        by_muon=by_muon,
        flops_per_token=flops,
        has_attention=model.architecture != "mamba",
    )
    memory = memory_of(step)
    checkpointed = sum(memory_of(replace(step, checkpointing=True)).values())
    peak = 1e12 * device.tflops
    of_token = flops / (peak * args.mfu) if args.mfu else seconds_per_token(step, device)
    tokens = run.max_steps * data.tokens_per_step
    checkpoint_gb = 12e-9 * count - 4e-9 * by_muon
    sources = []
    for source in data.mixture():
        held, seen = tokens_of(source, config.tokens_per_frame, args.source_tokens), source.weight * tokens
        # A source without validation data of its own holds out some of its items.
        used = held and held * (1 if source.val_data or source.is_toyworld else 1 - 1 / HELD_OUT)
        fact = {"name": source.name, "weight": source.weight, "tokens": held, "tokens_seen": seen}
        sources.append(fact | {"epochs": seen / used if used else None, "shards_gb": 2e-9 * held if held else None})
    # A validation is the forward pass, a third of a step, of all rows, in equal micro-batches on all devices.
    validated = len(sources or [None]) * -(-data.val_rows // (micro * gpus)) * micro * row
    hours = {
        "steps": tokens * of_token / gpus,
        "checkpoints": -(-run.max_steps // run.save_steps) * 1e9 * checkpoint_gb / CHECKPOINT_SPEED,
        "validation": -(-run.max_steps // (run.eval_steps or run.save_steps)) * validated * of_token / 3,
    }
    hours = {name: seconds / 3600 for name, seconds in hours.items()}
    total = sum(hours.values())
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
        "mode": step.mode,
        "gradient_checkpointing": run.gradient_checkpointing,
        "width": config.hidden_size,
        "mfu": flops / (peak * of_token),
        "mfu_by_mode": None if args.mfu else _mfu_by_mode(step, device),
        "tokens_per_second": gpus / of_token,
        "hours_by_part": hours,
        "hours": total,
        "gpu_hours": gpus * total,
        "memory_gb": {name: size / 1e9 for name, size in memory.items()},
        "memory_total_gb": sum(memory.values()) / 1e9,
        "memory_checkpointed_gb": checkpointed / 1e9,
        "fits": sum(memory.values()) < USABLE * 1e9 * device.memory_gb,
        "checkpoint_gb": checkpoint_gb,
        "sources": sources,
        "assumed": {
            "gpus": gpus,
            "gpus_given": args.gpus is not None,
            "peak_tflops": device.tflops,
            "memory_gb": device.memory_gb,
            "bandwidth_gbs": device.bandwidth_gbs,
            "device_source": device.source,
            "mfu": args.mfu,
            "shares": None if args.mfu else {"products": PRODUCTS, "attention": ATTENTION, "traffic": TRAFFIC},
            "moved": None if args.mfu else MOVED[step.mode],
            "checkpoint_gb_per_second": CHECKPOINT_SPEED / 1e9,
            "save_steps": run.save_steps,
            "eval_steps": run.eval_steps or run.save_steps,
            "val_rows": data.val_rows,
            "precision": args.precision,
            "sharding": args.sharding,
        },
    }


def _mfu_by_mode(step: Step, device: Gpu) -> dict[str, float]:
    """Mode, such as "eager recomputed" -> estimated MFU."""
    found = {}
    for mode in MOVED:
        for checkpointing in (False, True):
            seconds = seconds_per_token(replace(step, mode=mode, checkpointing=checkpointing), device)
            name = mode + (" recomputed" if checkpointing else "")
            found[name] = step.flops_per_token / (1e12 * device.tflops * seconds)
    return found


def _fitting_gpus(data: DataArgs, tokens_per_row: int) -> int:
    """The largest number of devices up to DEFAULT_GPUS that share a step in whole batches of per_device_batch_size.

    1 if none can: a recipe for one device, or one that is refused later.
    """
    from training.engine.objective import accumulation_steps

    for gpus in range(DEFAULT_GPUS, 1, -1):
        try:
            micro, _ = accumulation_steps(data, tokens_per_row, gpus)
        except ValueError:
            continue
        if micro == data.per_device_batch_size:
            return gpus
    return 1


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
    assumed, gpus, parts = found["assumed"], found["assumed"]["gpus"], found["hours_by_part"]
    memory = ", ".join(f"{name} {size:.1f}" for name, size in found["memory_gb"].items())
    total, checkpointed = found["memory_total_gb"], found["memory_checkpointed_gb"]
    days = f" ({found['hours'] / 24:,.1f} days)" if found["hours"] >= 24 else ""
    fit = "fits"
    if not found["fits"]:
        fit = "DOES NOT FIT: lower --per_device_batch_size, or use --gradient_checkpointing or --sharding fsdp2"
    lines = [
        f"model      {found['preset']} ({found['architecture']}), {found['parameters'] / 1e6:,.1f} M parameters",
        f"training   {found['steps']:,} steps of {found['tokens_per_step']:,} tokens, "
        f"{_amount(found['tokens'])} in total",
        f"compute    {found['flops_per_token'] / 1e9:.3g} GFLOPs per token (with attention and vocabulary), "
        f"{found['flops']:.2e} in total",
        f"step       {found['accumulation']} x {found['rows_per_device']} rows on "
        + ("1 device" if gpus == 1 else f"each of {gpus} devices")
        + ("" if assumed["gpus_given"] else " (a number that fits the recipe; --gpus sets another)"),
        f"time       {_time(found['hours'])}{days}, {_time(found['gpu_hours']).replace(' ', ' GPU-')}",
        f"           steps {_time(parts['steps'])} ({found['tokens_per_second']:,.0f} tokens/s, {found['mfu']:.0%} "
        f"MFU, {_mode(found)}), checkpoints {_time(parts['checkpoints'])}, validation {_time(parts['validation'])}",
        *_other_modes(found),
        f"memory     {total:.1f} GB per device of {assumed['memory_gb']:.0f}: {fit}",
        f"           {memory}",
    ]
    if not found["gradient_checkpointing"]:
        lines.append(f"           {checkpointed:.1f} GB with --gradient_checkpointing")
    lines.append(f"checkpoint {found['checkpoint_gb']:.1f} GB, weights and moments")
    for source in found["sources"]:
        held = f"{_amount(source['tokens_seen'])} tokens needed"
        if source["tokens"]:
            held = f"{source['tokens'] / 1e9:,.2f} B tokens ({source['shards_gb']:,.1f} GB as shards), "
            held += f"{source['epochs']:,.2f} epochs"
        lines.append(f"source     {source['name']} {source['weight']:.0%}: {held}")
    if any(source["tokens"] is None for source in found["sources"]):
        lines.append("           tokens unknown: give --source_tokens NAME=NUMBER for epochs and disk")
    lines += [f"assumed    {_assumptions(found)[0]}", *(f"           {line}" for line in _assumptions(found)[1:])]
    return "\n".join(lines)


def _amount(tokens: float) -> str:
    return f"{tokens / 1e9:,.1f} B" if tokens >= 1e8 else f"{tokens / 1e6:,.1f} M"


def _time(hours: float) -> str:
    """Hours; of less than one, minutes or seconds."""
    if hours < 1 / 60:
        return f"{3600 * hours:.1f} seconds"
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:,.0f} hours" if hours >= 1000 else f"{hours:,.1f} hours"


def _other_modes(found: dict) -> list[str]:
    """A line with the MFU of every mode; none if the MFU was given, since it holds for one mode."""
    others = ", ".join(f"{name} {mfu:.0%}" for name, mfu in (found["mfu_by_mode"] or {}).items())
    return [f"           MFU by mode: {others}"] if others else []


def _mode(found: dict) -> str:
    return found["mode"] + (", activations recomputed" if found["gradient_checkpointing"] else "")


def _assumptions(found: dict) -> list[str]:
    """What a plan assumes, a line each."""
    assumed = found["assumed"]
    every = assumed["save_steps"], assumed["eval_steps"]
    lines = [
        f"device: {assumed['peak_tflops']:,.4g} TFLOP/s dense {assumed['precision']}, {assumed['memory_gb']:.0f} GB, "
        f"{assumed['bandwidth_gbs']:,.0f} GB/s ({assumed['device_source']})"
    ]
    if assumed["mfu"]:
        lines.append(f"MFU: {assumed['mfu']:.1%} of this peak, as given")
    else:
        share, (of_width, of_mlp) = assumed["shares"], assumed["moved"]
        how = "counted, eager" if found["mode"] == "eager" else "compiled, in the proportion of base"
        lines += [
            f"MFU: estimated, not measured: {share['products']:.0%} of this peak in matrix products, "
            f"{share['attention']:.0%} in attention,",
            f"  {share['traffic']:.0%} of the bandwidth elsewhere; a block moves {of_width:g} bytes a unit of width",
            f"  and {of_mlp:g} a unit of MLP width per token ({how});",
            "  docs/scaling.md compares it with published runs",
        ]
        if found["gradient_checkpointing"]:
            lines.append("  recomputation: another forward pass of the blocks, a third of their cost")
        if found["width"] < SMALL:
            lines.append("  too high for a model this small, whose time goes into launching kernels")
    sharding = "every device holds all weights" if assumed["sharding"] == "ddp" else "weights sharded by FSDP2"
    lines += [
        f"checkpoints: every {every[0]:,} steps at {assumed['checkpoint_gb_per_second']:g} GB/s, all devices waiting",
        f"validation: every {every[1]:,} steps, {assumed['val_rows']:,} rows of each source, a forward pass each",
        "not counted: exchanging gradients, waiting for data, start-up",
        f"memory: {sharding}; float32 weights and moments; {USABLE:.0%} usable",
        "data: 2 bytes per token on disk; the paper's datasets by its Table 2, every 4th of 30 frames per second",
    ]
    if found["architecture"] in ("gpt2", "mamba"):
        kind = found["architecture"]
        lines.append(f"memory and memory traffic are those of a Toto of this size: {kind} also stores logits")
    return lines


def table(found: dict[str, dict]) -> str:
    """The plans of several presets as text, one line each."""
    assumed = next(iter(found.values()))["assumed"]
    mfu = f"{assumed['mfu']:.1%} MFU" if assumed["mfu"] else "MFU estimated (see the plan of one recipe)"
    lines = [
        f"devices of {assumed['peak_tflops']:,.4g} TFLOP/s {assumed['precision']}, {assumed['bandwidth_gbs']:,.0f} "
        f"GB/s and {assumed['memory_gb']:.0f} GB, {assumed['sharding']}, {_mode(next(iter(found.values())))}; {mfu}",
        f"{'preset':<8}{'parameters':>12}{'B tokens':>10}{'FLOPs':>10}{'devices':>9}{'MFU':>6}{'hours':>9}"
        f"{'GPU-hours':>11}{'rows':>8}{'GB per device':>15}{'checkpoint':>12}",
    ]
    for name, p in found.items():
        rows = f"{p['accumulation']} x {p['rows_per_device']}"
        lines.append(
            f"{name:<8}{p['parameters'] / 1e6:>10,.1f} M{p['tokens'] / 1e9:>10,.0f}{p['flops']:>10.1e}"
            f"{p['assumed']['gpus']:>9}{p['mfu']:>6.0%}{p['hours']:>9,.1f}{p['gpu_hours']:>11,.0f}{rows:>8}"
            f"{p['memory_total_gb']:>15.1f}{p['checkpoint_gb']:>9.1f} GB"
            f"{'' if p['fits'] else '  DOES NOT FIT'}"
        )
    return "\n".join(lines)


def measured(run: Path, mfu: float | None) -> dict:
    """Measured tokens/s and MFU of a run, and what `mfu` of the same peak predicts for its device.

    The peak is that of the device's data sheet; where the run knew none, the one that it measured at its start.

    Raises:
        ValueError: if the run has logged too few rows.
        FileNotFoundError: if `run` is not a run folder.
    """
    from statistics import median

    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: {without(run, 'metrics.jsonl')}")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "mfu" in row][1:]  # the first includes the warm-up
    # In runs of earlier versions, "mfu" is the share of the measured peak.
    rows = [row if "measured_mfu" in row else row | {"measured_mfu": row["mfu"], "mfu": None} for row in rows]
    require(bool(rows), f"{run} has logged too few steps; train longer, or set a lower --logging_steps.")
    key = "measured_mfu" if rows[-1]["mfu"] is None else "mfu"
    speed, reached = (median(row[name] for row in rows) for name in ("tokens_per_second", key))
    flops = rows[-1]["flops"] / rows[-1]["tokens"]
    peak = median(row["tokens_per_second"] * flops / row[key] for row in rows)
    facts = {"peak_gflops": peak / 1e9, "peak_is": "measured" if key == "measured_mfu" else "of the data sheet"}
    facts |= {"flops_per_token": flops, "measured_mfu": reached, "assumed_mfu": mfu, "measured": speed}
    predicted = mfu and mfu * peak / flops
    return facts | {"predicted": predicted, "measured_over_predicted": predicted and speed / predicted}


def _measured_text(run: str, found: dict) -> str:
    text = (
        f"{run}: {found['measured']:,.0f} tokens/s measured, {found['flops_per_token'] / 1e6:.2f} MFLOPs per token: "
        f"{found['measured_mfu']:.1%} MFU of {found['peak_gflops']:,.1f} GFLOP/s, the peak {found['peak_is']}"
    )
    if found["predicted"] is not None:
        text += (
            f"; {found['predicted']:,.0f} tokens/s predicted at {found['assumed_mfu']:.1%} MFU, ratio "
            f"{found['measured_over_predicted']:.2f}"
        )
    if found["peak_is"] == "measured":
        return f"{text}\nNot a number for --mfu, which refers to a data sheet's peak"
    return f"{text}\nPlan runs of this size, mode and device with --mfu {found['measured_mfu']:.3f}"


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
        text = _measured_text(args.measured, found)
    elif args.all:
        found = {preset: plan(replace(model, preset=preset, config="{}"), data, run, optim, args) for preset in ALL}
        text = table(found)
    else:
        found = plan(model, data, run, optim, args)
        text = page(found)
    print(json.dumps(found, indent=1) if args.json else text)
    if not (args.json or args.all or args.measured) and run.recipe is not None and run.scale != "tiny":
        name = Path(run.recipe).stem
        say_next("pretrain", "--recipe", run.recipe, "--scale", "tiny", "--output_dir", f"runs/{name}-tiny")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
